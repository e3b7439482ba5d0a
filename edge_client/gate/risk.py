"""The calibrated risk of the tokens of one text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from chaperone_common.session import Audited, Committed, Drafted, Retracted, SessionEvent
from chaperone_common.types import Proposal
from edge_client.gate import Features
from edge_client.gate.gate_model import GateModel


class CalibratedRisk:
    """Puts the calibrated risk into the signals of proposals; implements `RiskModel`."""

    def __init__(
        self,
        model: GateModel,
        token_text: Callable[[int], str],
        prompt_length: int,
        committed_token_ids: Sequence[int] = (),
    ) -> None:
        """Begin after the prompt; a resumed generation has committed tokens there already.

        `token_text` decodes one token.
        """
        self._model = model
        self._features = Features(token_text)
        self._begin = prompt_length
        for token_id in committed_token_ids:
            self._features.append(token_id, None)

    def with_risk(self, proposal: Proposal) -> Proposal:
        features = self._features.of(proposal.token_id, proposal.runner_up, proposal.signal)
        return replace(proposal, signal=replace(proposal.signal, risk=self._model.risk(features)))

    def follow(self, event: SessionEvent) -> None:
        match event:
            case Drafted(_, token_id, signal):
                self._features.append(token_id, signal)
            case Retracted(position):
                self._features.cut(position - self._begin)
            case Committed(position, token_id):
                if position - self._begin == len(self._features):  # the cloud's own
                    self._features.append(token_id, event.replaced.signal if event.replaced is not None else None)
            case Audited():
                pass
