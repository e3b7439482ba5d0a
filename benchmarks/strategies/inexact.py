"""Published strategies that do not promise the cloud's own text; `benchmarks.strategies.families` names them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from benchmarks.simulation.strategy import Strategy
from chaperone_common.types import Mode
from edge_client.gate import Always, Threshold
from edge_client.planner import Decision, DraftToken, FixedPlanner, Planner, Send, Situation, Wait

BILD_TOKENS = 10  # the most that the small model writes before a verification: `num_small_iters` of BiLD's code


@dataclass(frozen=True, slots=True)
class BildPlanner:
    """BiLD (arXiv 2302.07863): the device writes until it is unsure, and has this span judged at once.

    The device is unsure of a token if its model gave the likeliest token a probability under `fallback` (alpha_FB). The
    cloud writes such a token instead. Nothing is drafted while the cloud verifies.
    """

    fallback: float
    mode: Mode = Mode.EXACT  # nothing is final before the verdict

    def decide(self, situation: Situation) -> Decision:
        session = situation.session
        if self.mode is Mode.EDGE:
            return Decision(Wait() if session.exhausted else DraftToken(), "the device writes alone")
        if session.spans:
            return Decision(Wait(), "the cloud reads")
        written = len(session.text) - session.sent_length
        sure = self._sure(situation)
        if sure < written:
            return Decision(Send(sure), "fallback: the device is unsure of the next token")
        if session.exhausted or written >= BILD_TOKENS:
            return Decision(Send(), "nothing more may be written unread")
        return Decision(DraftToken(), "the device is sure")

    def alone(self) -> Self:
        return replace(self, mode=Mode.EDGE)

    def _sure(self, situation: Situation) -> int:
        """Return the number of unsent tokens before the first unsure one."""
        session = situation.session
        for position in range(session.sent_length, len(session.text)):
            proposal = situation.tree.proposal(position)
            if proposal is not None and proposal.signal.top1_probability < self.fallback:
                return position - session.sent_length
        return len(session.text) - session.sent_length


def bild(name: str, fallback: float, rollback_nats: float) -> Strategy:
    """Return BiLD (arXiv 2302.07863): `BildPlanner` with a lenient cloud.

    The text is rolled back to the first token whose cross-entropy under the cloud's model exceeds `rollback_nats`
    (alpha_RB), and the cloud replaces that token by its own. If there is none, the cloud writes the next token.
    Published values are alpha_FB 0.6, alpha_RB 2 to 5, and up to 10 tokens between two verifications.

    Simplified: the last token that the text has room for is always the cloud's own. The paper treats greedy text. At
    temperatures above 0 the tokens are the coupled choices of both models, and the probabilities those at that
    temperature. In virtual time both models continue after a deviation as they did after the cloud's token.
    """
    planner: Planner = BildPlanner(fallback)
    return Strategy(name, planner, Always, lenient_nats=rollback_nats)


def uhlm(name: str, threshold: float) -> Strategy:
    """Return U-HLM (arXiv 2412.12687): skip a token if its uncertainty u is under a threshold, else ask and wait.

    u is `edge_client.model.uncertainty.disagreement`, which the gate gets in place of the risk. A token that the gate
    asks about is sent with all tokens that were skipped before it. Nothing is drafted until the cloud has answered.

    The published system skips 45.93% of tokens at up to 97.54% of the large model's accuracy. It derives its threshold
    from a line fitted to the rejection probability over u, for its own pair of models. We do not know the value, and it
    would not hold for another pair, so the name gives the threshold.

    Simplified, mostly in its favour: u is integrated instead of drawn 20 times. Token ids are sent, not distributions
    over the vocabulary, and a token stands if it equals the cloud's coupled choice. The cloud adds its own next token
    to each answer, and audits the skipped tokens in the same forward. End-of-text always fires. In virtual time both
    models continue after a deviation as they did after the cloud's token.
    """
    planner = FixedPlanner(Mode.GATED, span_tokens=1, spans_in_flight=1, run_ahead_tokens=1)
    return Strategy(name, planner, partial(Threshold, threshold), risk_is_disagreement=True)
