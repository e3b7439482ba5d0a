"""The caches of a conversation: the state that both ends keep between its turns."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from chaperone_common.token_tree import common_prefix
from chaperone_common.types import SessionId
from edge_client.model.prompt_cache import PromptCache


class ConversationCaches:
    """The device's keys and values of the last turn, and the session whose text the cloud may still hold."""

    def __init__(self) -> None:
        self.prompt = PromptCache()
        self._id = uuid.uuid4().hex
        self._turns = 0
        self._session: SessionId | None = None
        self._text: tuple[int, ...] = ()  # of that session

    def new_session_id(self) -> SessionId:
        """Return the id of the next turn's session; a router sends all turns to one server by its first part."""
        self._turns += 1
        return SessionId(f"{self._id}.{self._turns}")

    def known_to_cloud(self, prompt: Sequence[int]) -> tuple[SessionId, int] | None:
        """Return the session whose text a prompt begins with, and how many tokens they share; None if there is none."""
        shared = common_prefix(self._text, tuple(prompt))
        return (self._session, shared) if self._session is not None and shared else None

    def ended(self, session_id: SessionId, text: Sequence[int]) -> None:
        """Note the text that the cloud holds of a turn that has ended."""
        if text:
            self._session, self._text = session_id, tuple(text)

    def clear(self) -> None:
        """Forget everything: the next turn is read from its beginning."""
        self.prompt.clear()
        self._session, self._text = None, ()
