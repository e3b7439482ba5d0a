"""The tokens of a text, with a record of each new one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from chaperone_common.types import Origin, Proposal


@dataclass(slots=True)
class TextToken:
    """One token of the text after the prompt, and what became of it.

    Records are kept by the `DeviceText`; all others read them, or the events made from them.
    """

    token_id: int
    # The device's proposal for this position. None where the cloud wrote first.
    proposal: Proposal | None = None
    # The gate asked the cloud about the proposal.
    fired: bool = False
    # The cloud is not asked about the proposal although the gate fired.
    unasked: bool = False
    # Provisional, and the cloud has to judge it before it is final. True after a fire, or when a stream broke that had
    # carried the token.
    to_judge: bool = False
    # Who vouches for the token. None while it is provisional.
    origin: Origin | None = None
    # The risk that was counted when it became final, in [0, 1].
    risk: float = 0.0

    @property
    def overridden(self) -> bool:
        """True if the cloud's token took the place of the device's."""
        return self.proposal is not None and self.proposal.token_id != self.token_id


class TextTokens:
    """The token ids of a text, and a record of each token after the first ones, which are the prompt."""

    def __init__(self, first: Sequence[int]) -> None:
        self.ids = [*first]
        self._first_new = len(self.ids)
        self._records: list[TextToken] = []

    def __getitem__(self, position: int) -> TextToken:
        """Return the record of a new token."""
        return self._records[position - self._first_new]

    def between(self, start: int, end: int | None = None) -> list[TextToken]:
        """Return the records of the new tokens from position `start` up to `end`, or to the last one."""
        return self._records[start - self._first_new : None if end is None else end - self._first_new]

    def append(self, token: TextToken) -> None:
        """Append a token."""
        self.ids.append(token.token_id)
        self._records.append(token)

    def cut(self, length: int) -> None:
        """Drop the tokens from position `length` on."""
        del self.ids[length:]
        del self._records[length - self._first_new :]

    def to_judge(self, start: int) -> Iterator[int]:
        """Return the positions from `start` on that the cloud has to judge, in order."""
        records = islice(self._records, start - self._first_new, None)
        return (position for position, token in enumerate(records, start) if token.to_judge)
