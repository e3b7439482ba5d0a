"""Strategies by name: ours and the published ones, as objects that serve real devices and virtual time alike.

A name is one of `NAMES`, where N stands for a number of tokens: `sync-8`, `overlap-16`, `acespec-8`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

from benchmarks.simulation.simulate import Strategy, strategy_for
from common.errors import ConfigError
from common.gate import Always
from common.planner import Decision, Draft, FixedPlanner, Send, Situation, Wait
from common.types import Mode

MAX_SPAN_TOKENS = 64  # that a name may ask for
_BRANCH_ROWS = 3  # that a device keeps beside its text


@dataclass(frozen=True, slots=True)
class BranchingPlanner:
    """AceSpec (arXiv 2609.02514): while the span is verified, draft several branches, more of them at unsure depths.

    The span is `span_tokens` long and one is on its way at a time, as in synchronous speculative decoding. Meanwhile
    the device drafts the next span behind it, and branches that begin with the draft's second choice where an override
    is most likely. If the cloud overrides with that choice, the branch is the next span, or its beginning.

    Simplified: a depth has one branch, so that "more at unsure depths" becomes "at the most unsure depths"; there are
    three, each as long as a span, all drafted in one forward with the text; and the branch cache lives for one span.
    How unsure a depth is, is told by our calibrated risk, which favours it over entropy. The paper is known from a
    summary alone, which does not give its thresholds.
    """

    mode: Mode
    span_tokens: int

    def decide(self, situation: Situation) -> Decision:
        session = situation.session
        unsent = len(session.text) - session.sent
        complete = session.exhausted or unsent >= self.span_tokens
        if complete and unsent and not session.spans:
            return Decision(Send(), "the span is complete")
        branches = self._branches(situation) if session.spans else ()
        if branches or not complete:
            return Decision(Draft(not complete, branches), "until the cloud answers, or the span is complete")
        return Decision(Wait(), "the next span and all branches are there")

    def alone(self) -> Self:
        return replace(self, mode=Mode.EDGE)

    def _branches(self, situation: Situation) -> tuple[int, ...]:
        """Where branches begin that are not as long as a span yet."""
        session, tree = situation.session, situation.tree
        reached, chances = 1.0, {}
        for position in range(session.final, session.sent):
            chances[position] = reached * tree.risk(position)
            reached *= 1.0 - tree.risk(position)
        unsure = sorted(chances, key=lambda position: -chances[position])[:_BRANCH_ROWS]
        growing = {start for _, start in tree.sites()}  # those that have not ended
        return tuple(
            start
            for start in unsure
            if start in growing
            and (start not in tree.branches or len(tree.branches[start].proposals) < self.span_tokens)
        )


def synchronous(span_tokens: int) -> FixedPlanner:
    """Speculative decoding as published (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318).

    Draft N tokens, send them, wait, repeat; nothing is drafted while the cloud reads. Instead of the ratio test a
    draft stands if it equals the cloud's coupled choice, as for all strategies here.
    """
    return FixedPlanner(Mode.EXACT, span_tokens, spans_in_flight=1, run_ahead_tokens=span_tokens)


def overlapping(span_tokens: int) -> FixedPlanner:
    """A single chain that is drafted on while it is verified: PEARL (arXiv 2408.11850), PicoSpec (arXiv 2603.19133).

    Spans of N tokens: while one is verified the next is drafted and sent, so that two are on their way. PEARL's
    "pre-verify", a request for the first token of a span alone while the rest is drafted, is left out; its span adapts
    to the ratio of speeds, which here is N.
    """
    return FixedPlanner(Mode.EXACT, span_tokens, spans_in_flight=2, run_ahead_tokens=2 * span_tokens)


def branching(span_tokens: int) -> BranchingPlanner:
    """AceSpec; see `BranchingPlanner`."""
    return BranchingPlanner(Mode.EXACT, span_tokens)


FAMILIES: Mapping[str, Callable[[int], FixedPlanner | BranchingPlanner]] = {
    "sync": synchronous,
    "overlap": overlapping,
    "acespec": branching,
}
NAMES = (*(str(mode) for mode in Mode), *(f"{family}-N" for family in FAMILIES))


def strategy_named(name: str) -> Strategy:
    """The strategy of that name; raises ConfigError, which lists what there is."""
    if name in tuple(Mode):
        return strategy_for(Mode(name))
    family, span_tokens = _parsed(name)
    return Strategy(name, FAMILIES[family](span_tokens), Always())


def _parsed(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"([a-z]+)-([1-9][0-9]*)", name)
    if match is None or match[1] not in FAMILIES:
        raise ConfigError(f"strategies: {name!r} is none of {', '.join(NAMES)}, with N tokens a span, such as sync-8")
    span_tokens = int(match[2])
    if span_tokens > MAX_SPAN_TOKENS:
        raise ConfigError(f"strategies: {name!r}: a span has at most {MAX_SPAN_TOKENS} tokens; give fewer")
    return match[1], span_tokens
