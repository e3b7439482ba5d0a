"""The record of one token of the text."""

from __future__ import annotations

from dataclasses import dataclass

from chaperone_common.types import Origin, Proposal


@dataclass(slots=True)
class TextToken:
    """One token of the text after the prompt, and what became of it.

    Records are kept by the `DeviceSession`; all others read them, or the events made from them.
    """

    token_id: int
    # The device's proposal for this position. None where the cloud wrote first.
    proposal: Proposal | None = None
    # The gate asked the cloud about the proposal.
    fired: bool = False
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
