"""The ceiling on the cloud's share of a text: a guard against a device that relies on the large model too much.

A draft model that does not fit its texts is overridden nearly everywhere. The text is then the large model's, at its
price. The ceiling makes that visible, and keeps the cloud's tokens within

    cloud tokens <= limit * max(final tokens, LEAST_TOKENS)

at all times. Under a ceiling the cloud only answers questions, and never writes by itself. An answer brings at most one
token of the cloud, and one more after a branch. So a fire needs room for one token. Fires that wait for their answers
share that room: an override takes back the tokens after it, and their fires.
"""

from __future__ import annotations

from dataclasses import dataclass

from chaperone_common.errors import CloudShareExceeded
from chaperone_common.session import CloudShareReached, DeviceSession
from chaperone_common.token_tree import BranchToken

# The share is measured over at least this many tokens: the share of a few tokens says little.
LEAST_TOKENS = 32
# Once the ceiling is reached, the gate asks again when the cloud may choose this many tokens. With 1, asking and not
# asking would alternate at every other fire.
RESUME_TOKENS = 4


@dataclass(frozen=True, slots=True)
class CloudShareLimit:
    """The ceiling of one text, and what happens there."""

    # Largest share of the final tokens that the cloud may choose, in (0, 1]. None or 1: any share.
    share: float | None = None
    # At the ceiling the generation fails. Otherwise it goes on without asking.
    fails: bool = False
    # Tokens of the cloud among the committed tokens of a resumed text.
    resumed_cloud_tokens: int = 0


NO_LIMIT = CloudShareLimit()


class CloudShareGuard:
    """The guard of one text: it decides for each fire if the cloud may be asked, and how much an answer may hold."""

    def __init__(self, session: DeviceSession, limit: CloudShareLimit) -> None:
        """Guard the text of `session`; without a ceiling, only measure the share."""
        self.limit = None if limit.share == 1 else limit.share
        self.reached = False  # at least once
        self.held = False  # the cloud must not be asked
        self.error: CloudShareExceeded | None = None  # the reason why the text must end
        self._session = session
        self._resumed = limit.resumed_cloud_tokens
        self._fails = limit.fails

    @property
    def share(self) -> float:
        """The cloud's share of the final tokens."""
        return self._cloud_tokens / self._tokens if self._tokens else 0.0

    @property
    def tokens_left(self) -> int | None:
        """Tokens that the cloud may choose in answer to the next question; None: any number."""
        if self.limit is None:
            return None
        left = max(0, int(self.limit * self._measured_tokens) - self._cloud_tokens)
        return 0 if self.held and left < RESUME_TOKENS else left

    def check(self) -> list[CloudShareReached]:
        """Decide on the next fire. If the ceiling leaves no room, set `held`, or `error` if the text must end."""
        was_held, self.held = self.held, self.tokens_left == 0
        if self.limit is None or was_held or not self.held:
            return []
        self.reached = True
        event = CloudShareReached(len(self._session.text), self._cloud_tokens, self._measured_tokens, self.limit)
        if not self._fails:
            return [event]
        remedy = "resume with a higher value or in mode edge, or set gate.on_cloud_share to continue"
        self.error = CloudShareExceeded(f"{event.reason}; {remedy}")
        return []

    def fit(self, continuation_tokens: int, branches: tuple[BranchToken, ...]) -> tuple[int, tuple[BranchToken, ...]]:
        """Return the part of a takeover and of branches that the next question may have."""
        left = self.tokens_left
        if left is None:
            return continuation_tokens, branches
        return 0, branches if left > 1 else ()

    @property
    def _cloud_tokens(self) -> int:
        return self._resumed + self._session.tally.cloud_tokens

    @property
    def _measured_tokens(self) -> int:
        return max(self._tokens, LEAST_TOKENS)

    @property
    def _tokens(self) -> int:
        return self._session.final_length - self._session.prompt_length
