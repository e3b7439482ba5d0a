"""Strategies by name, ours and the published ones, for real devices and virtual time alike.

A name is one of `NAMES`, where N stands for a number of tokens: `sync-8`, `overlap-16`, `acespec-8`, `specedge-32`.
`gated-0.9` and its like take a promise or a risk (`benchmarks.strategies.gated`). `bild-0.6-2` and `uhlm-0.1` take
thresholds (`benchmarks.strategies.inexact`). None of these promise the cloud's own text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple, Self

from benchmarks.simulation.strategy import Strategy, gated_strategy, strategy_for
from benchmarks.simulation.trace import Trace
from benchmarks.strategies.gated import GATED_NAMES, PACKAGED, gate_for, gate_settings
from benchmarks.strategies.inexact import bild, uhlm
from chaperone_common.errors import ConfigError
from chaperone_common.types import Mode
from edge_client.gate import Always
from edge_client.gate.gate_model import GateModel
from edge_client.planner import BranchPrefix, Decision, DraftToken, FixedPlanner, Planner, Send, Situation, Wait
from edge_client.planner.draft_tree import DraftTree

MAX_SPAN_TOKENS = 64  # the longest span that a name may ask for
_BRANCH_ROWS = 3  # rows that a device keeps for branches


@dataclass(frozen=True, slots=True)
class BranchingPlanner:
    """AceSpec (arXiv 2609.02514): draft several branches while the span is verified, more of them at unsure depths.

    A span has `span_tokens` tokens, and one is in flight at a time, as in synchronous speculative decoding. During this
    time the device drafts the next span, and branches. A branch begins with the draft's second choice at a position
    where an override is likely. If the cloud overrides with that choice, the branch is the next span, or its beginning.

    Simplified: a depth has one branch, so that "more at unsure depths" becomes "at the most unsure depths". There are
    three branches, each as long as a span, all drafted in one forward with the text. The branch cache lives for one
    span. Our calibrated risk measures how unsure a depth is, which favours the strategy over entropy. We know only a
    summary of the paper, and it does not give the thresholds.
    """

    mode: Mode
    span_tokens: int

    def decide(self, situation: Situation) -> Decision:
        session = situation.session
        unsent = len(session.text) - session.sent_length
        complete = session.exhausted or unsent >= self.span_tokens
        if complete and unsent and not session.spans:
            return Decision(Send(), "the span is complete")
        branches = self._branches(situation) if session.spans else ()
        if branches or not complete:
            return Decision(DraftToken(not complete, branches), "until the cloud answers, or the span is complete")
        return Decision(Wait(), "the next span and all branches are there")

    def alone(self) -> Self:
        return replace(self, mode=Mode.EDGE)

    def _branches(self, situation: Situation) -> tuple[int, ...]:
        """Yield the beginnings of branches that are shorter than a span."""
        session, tree = situation.session, situation.tree
        reached, chances = 1.0, {}
        for position in range(session.final_length, session.sent_length):
            chances[position] = reached * tree.risk(position)
            reached *= 1.0 - tree.risk(position)
        unsure = sorted(chances, key=lambda position: -chances[position])[:_BRANCH_ROWS]
        growing = {start for _, start in tree.sites()}  # branches that have not ended
        return tuple(
            start
            for start in unsure
            if start in growing
            and (start not in tree.branches or len(tree.branches[start].proposals) < self.span_tokens)
        )


class _Node(NamedTuple):
    chance: float  # of the cloud's text reaching this token, or the second choice where a branch begins
    start: int | None  # the beginning of its branch; None in the chain
    drafted: bool  # False: it can be drafted next


@dataclass(frozen=True, slots=True)
class TreePlanner:
    """SpecEdge (arXiv 2505.17052): draft a tree of `tree_tokens` tokens, send it, and draft on while it is verified.

    The tree's tokens are those of the highest cumulative probability under the draft, here by our calibrated chances.
    Each forward drafts one more token of the text, and one of each branch whose next token promises to be among them.
    Tokens that are not drafted yet count with the typical risk of late. While the cloud verifies, the device drafts on
    at the likeliest leaf ("proactive drafting"): a bonus and up to as many tokens as a tree has. The part that is still
    right after the verdict begins the next tree.

    Simplified: branches only leave the chain, one per depth, and begin with the draft's second choice. At most three
    are longer than that one token, since the device has only that many rows for them. A token stands if it equals the
    cloud's coupled choice. An unlikely token of the chain is sent if its second choice is among the likeliest.
    """

    mode: Mode
    tree_tokens: int

    def decide(self, situation: Situation) -> Decision:
        session = situation.session
        if self.mode is Mode.EDGE:
            return Decision(Wait() if session.exhausted else DraftToken(), "the device writes alone")
        if session.spans:
            return self._draft_ahead(situation)
        # Sorting is stable, so that no child comes before its parent, which is as likely at least.
        tree = sorted(_nodes(situation), key=lambda node: -node.chance)[: self.tree_tokens]
        wanted = {node.start for node in tree if not node.drafted}
        if wanted:
            return Decision(_drafting(wanted), "a likelier token can be drafted")
        tokens = Counter(node.start for node in tree)
        branches = tuple(BranchPrefix(start, count) for start, count in tokens.items() if start is not None)
        return Decision(Send(tokens[None], branches=branches), "the likeliest tokens are there")

    def alone(self) -> Self:
        return replace(self, mode=Mode.EDGE)

    def _draft_ahead(self, situation: Situation) -> Decision:
        session, tree = situation.session, situation.tree
        leaves: list[tuple[float, int | None]] = [*_growing(tree)]
        if not session.exhausted:
            stands = prod(1.0 - tree.risk(position) for position in range(session.final_length, len(session.text)))
            leaves.append((stands, None))
        if leaves:
            _, start = max(leaves, key=lambda leaf: leaf[0])
            ahead = len(session.text) - session.sent_length if start is None else len(tree.chances(start)) - 1
            if ahead <= self.tree_tokens:
                return Decision(_drafting({start}), "until the cloud answers")
        return Decision(Wait(), "enough is drafted after the likeliest leaf")


def _drafting(starts: Set[int | None]) -> DraftToken:
    """Return an action that drafts a token of the text, if None is in `starts`, and of the branches at the others."""
    return DraftToken(None in starts, tuple(sorted(start for start in starts if start is not None)))


def _growing(tree: DraftTree) -> list[tuple[float, int]]:
    """Return the sites of the tree where no other branch has to give way, the likeliest first."""
    sites = sorted(tree.sites(), reverse=True)
    beginning = [start for _, start in sites if start not in tree.branches][: tree.free_rows]
    return [(chance, start) for chance, start in sites if start in tree.branches or start in beginning]


def _nodes(situation: Situation) -> Iterator[_Node]:
    """Yield all tokens that are drafted and not judged, and those that can be drafted next; the chain first."""
    session, tree, estimates = situation.session, situation.tree, situation.pipeline.estimates
    typical, reached, branches = estimates.risks.typical, 1.0, []
    for position in range(session.final_length, len(session.text)):
        chances = tree.chances(position)
        yield _Node(reached * max(1.0 - tree.risk(position), chances[0]), None, drafted=True)
        branches += [_Node(reached * chance, position, drafted=True) for chance in chances]
        reached *= 1.0 - tree.risk(position)
    for _ in range(0 if session.exhausted else min(session.limit - len(session.text), MAX_SPAN_TOKENS)):
        branches.append(
            _Node(reached * typical * estimates.hit, None, drafted=False)
        )  # a branch at a token that is not drafted yet
        reached *= 1.0 - typical
        yield _Node(reached, None, drafted=False)
    yield from branches
    for chance, start in _growing(tree):
        room = session.limit - start - len(tree.chances(start))
        yield from (
            _Node(chance * (1.0 - typical) ** depth, start, drafted=False)
            for depth in range(1, min(room + 1, MAX_SPAN_TOKENS))
        )


def synchronous(span_tokens: int) -> FixedPlanner:
    """Return speculative decoding as published (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318).

    Draft N tokens, send them, wait, repeat. Nothing is drafted while the cloud verifies. Instead of the ratio test, a
    draft stands if it equals the cloud's coupled choice, as for all strategies here.
    """
    return FixedPlanner(Mode.EXACT, span_tokens, spans_in_flight=1, run_ahead_tokens=span_tokens)


def overlapping(span_tokens: int) -> FixedPlanner:
    """Return a single chain that grows while it is verified: PEARL (arXiv 2408.11850), PicoSpec (arXiv 2603.19133).

    While one span of N tokens is verified, the next one is drafted and sent, so that two are in flight. PEARL's
    "pre-verify" is left out: a request for the first token of a span alone while the rest is drafted. PEARL adapts its
    span to the ratio of speeds, which is N here.
    """
    return FixedPlanner(Mode.EXACT, span_tokens, spans_in_flight=2, run_ahead_tokens=2 * span_tokens)


def branching(span_tokens: int) -> BranchingPlanner:
    """Return AceSpec; see `BranchingPlanner`."""
    return BranchingPlanner(Mode.EXACT, span_tokens)


def treewise(tree_tokens: int) -> TreePlanner:
    """Return SpecEdge; see `TreePlanner`."""
    return TreePlanner(Mode.EXACT, tree_tokens)


FAMILIES: Mapping[str, Callable[[int], Planner]] = {
    "sync": synchronous,
    "overlap": overlapping,
    "acespec": branching,
    "specedge": treewise,
}
INEXACT = ("bild-FALLBACK-ROLLBACK", "uhlm-THRESHOLD")
MODES = tuple(mode for mode in Mode if mode is not Mode.CONDITIONED)  # recorded texts have no encodings
_OTHERS = (*(f"{family}-N" for family in FAMILIES), *GATED_NAMES, *INEXACT)
NAMES = (*(str(mode) for mode in MODES), *_OTHERS)
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"


def strategy_over(trace: Trace, name: str, gate: str = PACKAGED) -> Strategy:
    """Return the strategy of a name for traces of one device model, with the gate that `gate_for` names.

    Raises as `strategy_named` and `gate_for` do; only strategies that use a calibrated gate need its values.
    """
    return strategy_named(name, gate_for(trace, gate) if gate_settings(name) is not None else None)


def strategy_named(name: str, gate_model: GateModel | None = None, modes: Sequence[Mode] = MODES) -> Strategy:
    """Return the strategy of a name; raise ConfigError with all names if there is none.

    The product's own gates (`benchmarks.strategies.gated`) use the calibrated risks of `gate_model`. `modes` are those
    that a name may name.
    """
    settings = gate_settings(name)
    if settings is not None:
        return gated_strategy(name, settings, gate_model)
    if name in modes:
        return strategy_for(Mode(name))
    if match := re.fullmatch(rf"bild-{_NUMBER}-{_NUMBER}", name, re.ASCII):
        return bild(name, _probability(name, match[1]), float(match[2]))
    if match := re.fullmatch(rf"uhlm-{_NUMBER}", name, re.ASCII):
        return uhlm(name, _probability(name, match[1]))
    family, span_tokens = _parsed(name, modes)
    return Strategy(name, FAMILIES[family](span_tokens), Always)


def _probability(name: str, text: str) -> float:
    if float(text) > 1:
        raise ConfigError(f"strategies: {name!r}: {text} is no probability; give at most 1")
    return float(text)


def _parsed(name: str, modes: Sequence[Mode]) -> tuple[str, int]:
    match = re.fullmatch(r"([a-z]+)-([1-9][0-9]*)", name)
    if match is None or match[1] not in FAMILIES:
        raise ConfigError(
            f"strategies: {name!r} is none of {', '.join([*modes, *_OTHERS])}, with N tokens a span, such as sync-8, "
            "or thresholds, such as bild-0.6-2 and uhlm-0.1"
        )
    span_tokens = int(match[2])
    if span_tokens > MAX_SPAN_TOKENS:
        raise ConfigError(f"strategies: {name!r}: a span has at most {MAX_SPAN_TOKENS} tokens; give fewer")
    return match[1], span_tokens
