"""The cloud's model in virtual time with branches: its choices and their cost."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.simulation.cloud import SimulatedQueue
from benchmarks.simulation.costs import CloudCosts, Curve
from benchmarks.simulation.script import CLOUD_FILLER, PROMPT_TOKEN, Script
from benchmarks.simulation.virtual_time import run
from chaperone_common.token_tree import BranchToken, TokenTree
from chaperone_common.types import SamplingParams
from tests.support.benchmarks.traces import trace_of

COSTS = CloudCosts(read_ms=Curve.of((1, 1), (100, 100)), prefill_ms=1)  # a millisecond per token
PROMPT = (PROMPT_TOKEN,) * 4

Round = tuple[tuple[int, ...], int, Sequence[tuple[int, int]]]


def play(*rounds: Round) -> list[tuple[int, list[int]]]:
    """Return the tokens that each forward (written tokens, choices, branches) read, and its choices."""

    async def scenario() -> list[tuple[int, list[int]]]:
        worker = SimulatedQueue({"a": Script(trace_of("++++++"))}, COSTS)
        await worker.forward("a", TokenTree(PROMPT[:-1]), 0, SamplingParams())
        found = []
        for written, choices, pairs in rounds:
            branches = tuple(BranchToken(*pair) for pair in pairs)
            result = await worker.forward("a", TokenTree(PROMPT + written, branches), choices, SamplingParams())
            found.append((result.compute_us // 1000, [choice.token_id for choice in result.choices]))
        return found

    return run(scenario())


def test_the_script_follows_the_branch_of_the_cloud() -> None:
    # The draft goes astray at its second token; the branch there is the cloud's own text, and so is its continuation.
    branches = [(4, 101), (7, 102), (7, 109), (3, 108)]
    [(_, choices)] = play(((100, 201, 300), 4, branches))
    assert choices == [100, 101, CLOUD_FILLER, CLOUD_FILLER, 102, 103, CLOUD_FILLER, CLOUD_FILLER]


def test_chain_and_branch_tokens_cost_the_same() -> None:
    assert [cost for cost, _ in play(((100, 101), 3, ()), ((100, 101), 3, [(3, 108), (6, 109)]))] == [3, 5]


def test_accepted_branch_tokens_cost_no_second_forward() -> None:
    first = ((100, 201, 300), 4, [(4, 101), (7, 102)])
    text = (100, 101, 102, 103)
    assert [cost for cost, _ in play(first, (text, 1, ()))] == [6, 1]
    assert [cost for cost, _ in play(first, (text, 1, [(7, 104)]), ((*text, 104, 105), 1, ()))] == [6, 2, 1]
    assert [cost for cost, _ in play(first, ((100, 109, 102), 1, ()))] == [6, 2], "another branch was not read"
