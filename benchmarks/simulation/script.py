"""The answers of both models on one trace, for texts that follow the recorded one and for texts that do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from benchmarks.simulation.trace import Trace, lacking
from chaperone_common.frames import Open
from chaperone_common.token_tree import common_prefix
from chaperone_common.types import Proposal, SessionId, Signal

# Ids outside any tokenizer, so that they equal no token of a trace; as long on the wire as large ids.
PROMPT_TOKEN = 2**20
DEVICE_FILLER, CLOUD_FILLER, RUNNER_UP_FILLER = PROMPT_TOKEN + 1, PROMPT_TOKEN + 2, PROMPT_TOKEN + 3
VOCABULARY_SIZE = PROMPT_TOKEN + 4
CONTEXT_TOKENS = 2**15
TOKENIZER_DIGEST = "sha256:" + 64 * "0"

# The signal of a trace that has none.
_UNKNOWN = Signal(entropy_nats=1.0, top1_probability=0.5, margin=0.0, coupled_margin=0.0, risk=0.5)


class ScriptedModels(Protocol):
    """The answers of a pair's two models on one text, played in virtual time.

    A request is announced when its virtual time begins, and made when that time is over. So real models can answer for
    several texts at once.
    """

    @property
    def limit(self) -> int:
        """The length at which the text is full, prompt included."""

    def opening(self) -> Open:
        """Return the frame with which the device opens the session."""

    def keep(self, position: int) -> None:
        """Keep the device's token at this position, even if the cloud would have chosen another one."""

    def drop(self, position: int) -> None:
        """Take back the tokens from this position on."""

    def expect_proposal(self, token_ids: Sequence[int]) -> None:
        """Announce a request for the proposal after this text; the request need not follow."""

    def proposal(self, token_ids: Sequence[int]) -> Proposal:
        """Return the proposal of the device's model after a text."""

    def expect_choices(self, token_ids: Sequence[int], count: int) -> None:
        """Announce a request for these choices; the request need not follow."""

    def choices(self, token_ids: Sequence[int], count: int) -> list[int]:
        """Return the cloud's choices after the last `count` prefixes of a text, the shortest first."""


class Script(ScriptedModels):
    """One trace, played by a simulated device model and a simulated cloud model.

    A text is on the recorded path while its tokens are the cloud's. Off the path, the device proposes the recorded
    continuation, and the cloud's choice equals no token: everything after a mismatch is void. It is not void if the
    device keeps its token because the gate skipped it, or if a lenient cloud accepts it. The models' further answers
    after such a token were not recorded. They are taken to be those after the cloud's token, position by position
    (`keep`).
    """

    def __init__(self, trace: Trace, lenient_nats: float | None = None) -> None:
        """Choose the device's token wherever its cross-entropy is at most `lenient_nats`.

        Raises ConfigError if `lenient_nats` is given and the trace has no cross-entropies.
        """
        if lenient_nats is not None and trace.cross_entropies is None:
            raise lacking(trace, "cross-entropies")
        entropies = trace.cross_entropies if trace.cross_entropies is not None else {}
        self._lenient = {at for at, nats in entropies.items() if lenient_nats is not None and nats <= lenient_nats}
        self.trace = trace
        self._token_ids = list(trace.token_ids)
        self._kept: set[int] = set()
        self._astray_paths: dict[int, list[int]] = {}

    def opening(self, session_id: str = "simulated") -> Open:
        """Return the frame that opens the session. Only the number of prompt ids matters, not the ids."""
        trace = self.trace
        return Open(
            session_id=SessionId(session_id),
            tokenizer_digest=TOKENIZER_DIGEST,
            sampling=trace.sampling,
            max_new_tokens=trace.max_new_tokens,
            eos_token_ids=trace.eos_token_ids,
            prompt_token_ids=(PROMPT_TOKEN,) * trace.prompt_tokens,
        )

    @property
    def limit(self) -> int:
        """The length at which the text is full, prompt included."""
        return self.trace.prompt_tokens + self.trace.max_new_tokens

    def keep(self, position: int) -> None:
        """Keep the device's token at this position, even if the cloud would have chosen another one."""
        self._kept.add(position)

    def drop(self, position: int) -> None:
        """Take back the tokens from this position on."""
        if self._kept:
            self._kept = {kept for kept in self._kept if kept < position}

    def expect_proposal(self, token_ids: Sequence[int]) -> None:
        return

    def expect_choices(self, token_ids: Sequence[int], count: int) -> None:
        return

    def choices(self, token_ids: Sequence[int], count: int) -> list[int]:
        """Return the cloud's choices after the last `count` prefixes of a text, the shortest first.

        Raises ValueError for choices inside the prompt.
        """
        written = list(token_ids[self.trace.prompt_tokens :])
        first = len(token_ids) + 1 - count - self.trace.prompt_tokens
        if count and first < 0:
            raise ValueError(f"choices: {count} after {len(token_ids)} tokens begin inside the prompt")
        known = [
            written[at] if self._is_let_stand(at, written) else token_id
            for at, token_id in enumerate(self._token_ids[first : self._left_at(written) + 1], start=first)
        ]
        return (known + [CLOUD_FILLER] * count)[:count]

    def proposal(self, token_ids: Sequence[int]) -> Proposal:
        """Return the proposal of the device's model after a text."""
        trace = self.trace
        written = list(token_ids[trace.prompt_tokens :])
        left = self._left_at(written)
        if left == len(written) and left < len(trace.proposals):
            return trace.proposals[left]
        return self._astray(written, left)

    def _astray(self, written: list[int], left: int) -> Proposal:
        """Return the recorded continuation if the text is the device's own, else a token that equals no other."""
        trace = self.trace
        if left >= len(trace.proposals):
            last = trace.proposals[-1].signal if trace.proposals else _UNKNOWN
            return Proposal(DEVICE_FILLER, last, RUNNER_UP_FILLER)
        own = (trace.proposals[left], *trace.astray.get(left, ()))
        gone = written[left:]
        agreed = common_prefix(self._astray_ids(left), gone)
        if agreed == len(gone) < len(own):
            return own[agreed]
        return Proposal(DEVICE_FILLER, own[max(0, agreed - 1)].signal, RUNNER_UP_FILLER)

    def _astray_ids(self, left: int) -> list[int]:
        """Return the device's own tokens from the position where the paths part."""
        ids = self._astray_paths.get(left)
        if ids is None:
            own = (self.trace.proposals[left], *self.trace.astray.get(left, ()))
            ids = self._astray_paths[left] = [proposal.token_id for proposal in own]
        return ids

    def _left_at(self, written: list[int]) -> int:
        """Return the number of new tokens of a text that are on the recorded path."""
        left = common_prefix(written, self._token_ids)
        while (self._kept or self._lenient) and left < min(len(written), len(self._token_ids)):
            if self.trace.prompt_tokens + left not in self._kept and not self._is_let_stand(left, written):
                break
            left += 1
            left += common_prefix(written[left:], self._token_ids[left:])
        return left

    def _is_let_stand(self, at: int, written: list[int]) -> bool:
        """Return whether the text has the device's token there, and the cloud is lenient about it."""
        return at in self._lenient and at < len(written) and written[at] == self.trace.proposals[at].token_id
