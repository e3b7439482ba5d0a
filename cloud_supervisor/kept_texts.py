"""The texts of sessions that have ended, so that the next turn of a conversation need not send them again."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from chaperone_common.errors import PrefixNotFound
from chaperone_common.frames import Open
from chaperone_common.session.prefixes import completed
from cloud_supervisor.admission import SessionKey


class KeptTexts:
    """Texts by tenant and session, the last ones that ended."""

    def __init__(self, most: int, most_tokens: int) -> None:
        """Keep up to `most` texts, of `most_tokens` tokens together; 0 texts keep none."""
        self.most = most
        self._most_tokens = most_tokens
        self._texts: dict[SessionKey, array[int]] = {}  # oldest first
        self._tokens = 0

    def keep(self, key: SessionKey, token_ids: Sequence[int]) -> None:
        """Keep the text of a session that ends."""
        self._forget(key)
        if len(token_ids) > self._most_tokens:
            return
        self._texts[key] = array("I", token_ids)
        self._tokens += len(token_ids)
        while len(self._texts) > self.most or self._tokens > self._most_tokens:
            self._forget(next(iter(self._texts)))

    def completed(self, tenant: str, opening: Open) -> Open:
        """Return an Open with its whole prompt; raises PrefixNotFound if the text that it refers to is not kept."""
        if opening.prefix is None:
            return opening
        whole = completed(opening, self._texts.get(SessionKey(tenant, opening.prefix.session_id)))
        if whole is None:
            raise PrefixNotFound(
                f"prefix: this cloud does not hold these {opening.prefix.length} tokens; send the whole prompt"
            )
        return whole

    def _forget(self, key: SessionKey) -> None:
        self._tokens -= len(self._texts.pop(key, ()))
