"""Published strategies that do not promise the cloud's own text; `benchmarks.strategies.families` names them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from benchmarks.simulation.strategy import Strategy
from chaperone_common.types import Mode
from edge_client.gate import Always, Threshold
from edge_client.planner import Decision, DraftToken, FixedPlanner, Planner, Send, Situation, Wait

BILD_TOKENS = 10  # that the small model writes at most before the large one reads: `num_small_iters` of BiLD's code


@dataclass(frozen=True, slots=True)
class BildPlanner:
    """BiLD (arXiv 2302.07863): the device writes until it is unsure, and has all of that judged at once.

    Unsure is a token whose model gave its likeliest token less than `fallback` (alpha_FB); the cloud writes it instead.
    Nothing is drafted while the cloud reads.
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
            return Decision(Send(sure), "fallback: the device is unsure of the token behind")
        if session.exhausted or written >= BILD_TOKENS:
            return Decision(Send(), "nothing more may be written unread")
        return Decision(DraftToken(), "the device is sure")

    def alone(self) -> Self:
        return replace(self, mode=Mode.EDGE)

    def _sure(self, situation: Situation) -> int:
        """How many tokens the cloud has not been sent yet stand before the first unsure one."""
        session = situation.session
        for position in range(session.sent_length, len(session.text)):
            proposal = situation.tree.proposal(position)
            if proposal is not None and proposal.signal.top1_probability < self.fallback:
                return position - session.sent_length
        return len(session.text) - session.sent_length


def bild(name: str, fallback: float, rollback_nats: float) -> Strategy:
    """BiLD (arXiv 2302.07863): see `BildPlanner`; and a cloud that is lenient about what it reads.

    The text is rolled back to the first token whose cross-entropy under the cloud's model exceeds `rollback_nats`
    (alpha_RB), which the cloud replaces by its own; where none does, it writes the token behind. Published are alpha_FB
    0.6 and alpha_RB 2 to 5, and 10 tokens at most between two readings.

    Simplified: the last token that the text has room for is always the cloud's own. Published for greedy text; at
    temperatures above 0 the tokens are the coupled choices of both models, and the probabilities those at that
    temperature. In virtual time both models go on behind a deviation as they did behind the cloud's token.
    """
    planner: Planner = BildPlanner(fallback)
    return Strategy(name, planner, Always, lenient_nats=rollback_nats)


def uhlm(name: str, threshold: float) -> Strategy:
    """U-HLM (arXiv 2412.12687): skip a token where its uncertainty u is under a threshold, else ask and wait.

    u is `edge_client.model.uncertainty.disagreement`, which the gate finds in the place of the risk. A token that is
    asked about is sent with all that were skipped before it, and nothing is drafted until the cloud has answered.

    Known of the published system: it skips 45.93% of tokens at up to 97.54% of the large model's accuracy, and derives
    its threshold from a line fitted to the rejection probability over u, for its own pair of models. Its value is not
    known to us, and would not transfer; so the threshold is given by name.

    Simplified, mostly in its favour: u is integrated instead of drawn 20 times; token ids are sent, not distributions
    over the vocabulary, and a token stands if it equals the cloud's coupled choice; the cloud adds its own next token
    to each answer, and audits what was skipped in the same reading. End-of-text is always asked about. In virtual time
    both models go on behind a deviation as they did behind the cloud's token.
    """
    planner = FixedPlanner(Mode.GATED, span_tokens=1, spans_in_flight=1, run_ahead_tokens=1)
    return Strategy(name, planner, partial(Threshold, threshold), risk_is_disagreement=True)
