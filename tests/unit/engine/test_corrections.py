"""The memory of corrections: what it proposes, what it forgets, and the drafter that asks it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from chaperone_common.logprobs import measure as measure_logprobs
from chaperone_common.types import Proposal, SamplingParams, Signal
from edge_client.model.adapted_drafter import AdaptedDrafter
from edge_client.model.corrections import Context, CorrectionMemory, Remembered
from edge_client.model.drafter import ChoosingDrafter
from edge_client.ports import TEXT_ROW
from tests.support.device.speculation import START, SpeculationHarness, greedy
from tests.support.fakes.draft import FakeDraft
from tests.support.fakes.target import FakeTarget

SIGNAL = Signal(entropy_nats=0.5, top1_probability=0.7, margin=0.5, coupled_margin=1.0, risk=0.2)
OWN = Proposal(7, SIGNAL, runner_up=8)
TEXT = [1, 2, 3, 4]
ONCE, TWICE = Context(3, 1), Context(2, 2)


def judged(memory: CorrectionMemory, text: list[int], proposal: Proposal, *chosen: int) -> None:
    """Have the cloud choose some tokens, one after the other, each at the end of the same text."""
    for token_id in chosen:
        memory.judged(text, len(text), proposal, token_id)


def test_a_correction_is_proposed_after_the_same_tokens() -> None:
    memory = CorrectionMemory([ONCE])
    assert memory.adapted(TEXT, OWN) is OWN
    judged(memory, TEXT, OWN, 9)
    found = memory.adapted([5, *TEXT[1:]], OWN)
    assert isinstance(found, Remembered)
    assert (found.token_id, found.runner_up) == (9, OWN.token_id)
    assert found.signal == replace(SIGNAL, risk=1 / 3)  # right once, and never wrong


def test_another_text_or_another_choice_of_the_small_model_is_left_alone() -> None:
    memory = CorrectionMemory([ONCE])
    judged(memory, TEXT, OWN, 9)
    for text, proposal in (([1, 2, 3, 5], OWN), ([3, 4], OWN), (TEXT, replace(OWN, token_id=6))):
        assert memory.adapted(text, proposal) is proposal


def test_agreement_enters_nothing() -> None:
    memory = CorrectionMemory([ONCE, TWICE])
    judged(memory, TEXT, OWN, OWN.token_id)
    assert len(memory) == 0


def test_a_short_context_needs_more_corrections() -> None:
    memory = CorrectionMemory([ONCE, TWICE])
    judged(memory, TEXT, OWN, 9)
    elsewhere = [6, 6, 3, 4]
    assert memory.adapted(elsewhere, OWN) is OWN
    judged(memory, elsewhere, OWN, 9)
    assert memory.adapted([8, 8, 3, 4], OWN).token_id == 9


def test_the_longest_context_with_an_entry_decides() -> None:
    memory = CorrectionMemory([ONCE, TWICE])
    judged(memory, [6, 6, 3, 4], OWN, 9)
    judged(memory, [8, 8, 3, 4], OWN, 9)
    judged(memory, TEXT, OWN, 5)
    assert memory.adapted(TEXT, OWN).token_id == 5
    judged(memory, TEXT, OWN, OWN.token_id)  # right once, wrong once
    assert memory.adapted(TEXT, OWN) is OWN


def test_a_correction_is_proposed_only_while_it_is_right_more_often_than_wrong() -> None:
    memory = CorrectionMemory([ONCE])
    judged(memory, TEXT, OWN, 9)
    proposed = memory.adapted(TEXT, OWN)
    judged(memory, TEXT, proposed, OWN.token_id)  # the small model was right after all
    assert memory.adapted(TEXT, OWN) is OWN
    judged(memory, TEXT, OWN, 9)
    assert memory.adapted(TEXT, OWN).token_id == 9
    judged(memory, TEXT, proposed, 9, 9)
    assert memory.adapted(TEXT, OWN).signal.risk == 2 / 7  # right four times of five


def test_the_outcome_of_a_remembered_proposal_counts_for_the_small_models_choice() -> None:
    memory = CorrectionMemory([ONCE])
    judged(memory, TEXT, OWN, 9)
    judged(memory, TEXT, memory.adapted(TEXT, OWN), 5)  # neither of the two
    assert len(memory) == 1
    assert memory.adapted(TEXT, OWN).token_id == 5


def test_a_position_inside_a_text_is_judged_by_the_tokens_before_it() -> None:
    memory = CorrectionMemory([ONCE])
    memory.judged([*TEXT, 9, 9, 9], len(TEXT), OWN, 9)
    assert memory.adapted(TEXT, OWN).token_id == 9


def test_a_proposal_with_log_probabilities_stays() -> None:
    memory = CorrectionMemory([ONCE])
    judged(memory, TEXT, OWN, 9)
    measured = replace(OWN, logprobs=measure_logprobs(FakeTarget().logits(TEXT), OWN.token_id, 0))
    assert memory.adapted(TEXT, measured) is measured


token = st.integers(0, 3)
judgement = st.tuples(st.lists(token, min_size=3, max_size=5), token, token)


@given(st.lists(judgement, max_size=60), st.integers(1, 8))
def test_the_memory_is_bounded_and_its_newest_correction_is_there(
    judgements: list[tuple[list[int], int, int]], capacity: int
) -> None:
    """Proposals name a token that the cloud chose before, and a new correction is never the entry that is dropped."""
    memory = CorrectionMemory([ONCE], capacity=capacity)
    corrected: dict[tuple[int, ...], set[int]] = {}
    for text, own, chosen in judgements:
        proposal = Proposal(own, SIGNAL, runner_up=own)
        before = memory.adapted(text, proposal)
        memory.judged(text, len(text), before, chosen)
        assert len(memory) <= capacity
        if chosen != own:
            corrected.setdefault((own, *text[-3:]), set()).add(chosen)
            if before is proposal:  # no reliable entry stood in the way
                assert memory.adapted(text, proposal).token_id == chosen
        found = memory.adapted(text, proposal)
        if found is not proposal:
            assert found.token_id in corrected[own, *text[-3:]]


def test_the_entry_that_was_used_least_recently_makes_room() -> None:
    memory = CorrectionMemory([ONCE], capacity=2)
    first, second, third = [1, 1, 1], [2, 2, 2], [3, 3, 3]
    judged(memory, first, OWN, 9)
    judged(memory, second, OWN, 9)
    judged(memory, first, OWN, 9)
    judged(memory, third, OWN, 9)
    assert [memory.adapted(text, OWN).token_id for text in (first, second, third)] == [9, OWN.token_id, 9]


def test_the_drafter_proposes_by_the_tokens_of_each_row() -> None:
    """Also after a fork, a rewinding, an adoption, and a beginning that the model held before."""

    async def scenario() -> None:
        memory = CorrectionMemory([ONCE])
        model = FakeDraft(branches=2)
        plain = FakeTarget()
        await model.step([3, 1, 4, 1])
        drafter = AdaptedDrafter(ChoosingDrafter(model, SamplingParams()), memory, held=[3, 1, 4, 1])

        def own(*text: int) -> int:
            return int(plain.logits(list(text)).argmax())

        def correct(*text: int) -> int:
            """Enter a correction after a text, and return it."""
            choice = own(*text)
            memory.judged(text, len(text), Proposal(choice, SIGNAL, choice), (choice + 1) % 16)
            return (choice + 1) % 16

        wanted = correct(3, 1, 4, 1, 5)
        found = await drafter.step([5])
        assert (found.token_id, found.runner_up) == (wanted, own(3, 1, 4, 1, 5))
        assert (drafter.length, drafter.branches) == (5, 2)
        drafter.fork(1, 4)
        on_text, on_branch = correct(3, 1, 4, 1, 5, 9), correct(3, 1, 4, 1, 2)
        proposals = await drafter.step_rows({TEXT_ROW: 9, 1: 2})
        assert [proposals[row].token_id for row in (TEXT_ROW, 1)] == [on_text, on_branch]
        drafter.adopt(1)
        assert (await drafter.step([6])).token_id == own(3, 1, 4, 1, 2, 6)
        wanted = correct(3, 1, 4, 1, 2, 6, 5)
        assert (await drafter.step([5])).token_id == wanted
        drafter.rewind(6)
        assert (await drafter.step([5])).token_id == wanted

    asyncio.run(scenario())


def test_a_step_that_is_cancelled_leaves_the_rows_as_they_were() -> None:
    async def scenario() -> None:
        memory = CorrectionMemory([ONCE])
        drafter = AdaptedDrafter(ChoosingDrafter(FakeDraft(), SamplingParams()), memory, held=[])
        await drafter.step([3, 1])
        task = asyncio.create_task(drafter.step([9]))
        await asyncio.sleep(0)  # the step has begun
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        choice = int(FakeTarget().logits([3, 1, 4]).argmax())
        memory.judged([3, 1, 4], 3, Proposal(choice, SIGNAL, choice), 2 if choice != 2 else 5)
        assert isinstance(await drafter.step([4]), Remembered)

    asyncio.run(scenario())


# --- In a generation -------------------------------------------------------------------------------------------------


def taught(*, branches: int = 2) -> tuple[SpeculationHarness, int]:
    """Return a new text of a client whose earlier text was corrected at its second token, and the correction."""
    memory = CorrectionMemory([ONCE])
    earlier = SpeculationHarness(corrections=memory)
    earlier.draft(3)
    earlier.send()
    correction = (earlier.text[START + 1] + 1) % 16
    earlier.override(START + 1, correction)
    return SpeculationHarness(branches=branches, corrections=memory), correction


def test_a_verdict_on_one_text_changes_the_draft_of_the_next() -> None:
    harness, correction = taught()
    harness.draft(3)
    assert harness.text[START] == greedy(harness.text[:START])
    assert harness.text[START + 1] == correction
    assert harness.text[START + 2] == greedy(harness.text[: START + 2]), "the model was fed the correction"


def test_the_small_models_own_choice_is_the_branch_next_to_a_correction() -> None:
    """If the cloud chooses it this time, its branch becomes the text, and later drafts continue after it."""
    harness, _ = taught()
    harness.draft(3)
    harness.send()
    own = greedy(harness.text[: START + 1])
    harness.branch(START + 1, tokens=2)
    steps = harness.model.steps
    harness.override(START + 1, own)
    assert harness.text[START + 1] == own
    assert len(harness.text) == START + 2 + 2
    assert harness.model.steps == steps, "the branch was drafted before"
    harness.check()
    harness.draft()
    harness.check()


def test_a_correction_that_the_cloud_contradicts_is_not_proposed_again() -> None:
    harness, correction = taught()
    harness.draft(2)
    assert harness.text[START + 1] == correction
    harness.send()
    harness.override(START + 1, greedy(harness.text[: START + 1]))
    third = SpeculationHarness(corrections=harness.corrections)
    third.draft(2)
    third.check()
