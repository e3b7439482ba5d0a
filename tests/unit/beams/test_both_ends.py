"""Both ends of a generation with beams, in one process: whatever happens, they know the same beams."""

from __future__ import annotations

import numpy as np
import pytest

from chaperone_common.beams.draft_row import DraftRow
from chaperone_common.beams.drafting import ForestDraft
from chaperone_common.beams.forest import Draw, Forest
from chaperone_common.beams.frames import BeamSettings, BeamStep, BeamVerdict, ForestFrame, RunningBeam
from chaperone_common.beams.hypotheses import Hypothesis
from chaperone_common.errors import InvalidRequest, ProtocolViolation
from tests.unit.beams.models import EOS, PROMPT, VOCABULARY, grow, large
from tests.unit.beams.pair import Pair


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("num_beams", [1, 2, 4])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_both_ends_know_the_same_beams(temperature: float, num_beams: int, depth: int) -> None:
    pair = Pair(BeamSettings(num_beams), temperature=temperature)
    pair.run(depth=depth)
    best = pair.device.progress.hypotheses.best
    assert 1 <= len(best) <= num_beams
    for hypothesis in best:
        text = hypothesis.token_ids
        law = [large((*PROMPT, *text[:end]))[text[end]] for end in range(len(text))]
        assert hypothesis.logprob == pytest.approx(float(np.log(law).sum()), rel=1e-5)
        assert hypothesis.finish_reason == ("stop" if text[-1] == EOS else "length")
        assert len(text) <= 12


@pytest.mark.parametrize("num_beams", [1, 2, 3])
@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_search_does_not_depend_on_the_drafts(num_beams: int, early_stopping: bool, length_penalty: float) -> None:
    settings = BeamSettings(num_beams, early_stopping=early_stopping, length_penalty=length_penalty)
    for number in range(24):
        found = []
        for width, depth in ((1, 0), (2, 1), (6, 4)):
            pair = Pair(settings, temperature=0.0, tokens=10, prompt=(1, number))
            pair.run(width, depth)
            found.append([hypothesis.token_ids for hypothesis in pair.device.progress.hypotheses.best])
        assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_forest_that_stands_ends_where_the_generation_does(temperature: float) -> None:
    """No round has a layer after the one in which enough texts are whole."""
    ended_early = 0
    for number in range(60):
        settings = BeamSettings(2, early_stopping=True)
        pair = Pair(settings, temperature=temperature, tokens=30, prompt=(1, number), seed=number)
        while not pair.device.progress.done:
            before = len(pair.device.progress.hypotheses.best)
            start = pair.device.progress.length
            pair.round(width=8, depth=6)
            added = [text.token_ids for text in pair.device.progress.hypotheses.best]
            if pair.device.progress.done and len(added) - before == 2:
                enough = sorted(map(len, added))[1]
                assert (pair.device.progress.length or enough) == enough
                ended_early += enough < start + 7
    assert ended_early


def test_drafted_beams_save_rounds() -> None:
    def rounds(depth: int) -> int:
        pair = Pair(BeamSettings(2), tokens=30)
        pair.run(width=6, depth=depth)
        return len(pair.verdicts)

    assert rounds(3) < rounds(0)


def test_a_round_gains_its_layers_also_if_all_texts_end_in_it() -> None:
    deep = 0
    for number in range(60):
        pair = Pair(BeamSettings(1), tokens=30, prompt=(1, number), seed=number)
        while not pair.device.progress.done:
            start = pair.device.progress.length
            pair.round(width=8, depth=6)
        [text] = pair.device.progress.hypotheses.best
        last = pair.gains[-1]
        if text.token_ids[-1] == EOS and not pair.verdicts[-1].running:
            assert last.layers == len(text.token_ids) - start
            deep += last.layers > 1
        for gain, verdict in zip(pair.gains, pair.verdicts, strict=True):
            assert gain.live == verdict.live
            assert gain.layers - len(gain.needed) in (0, 1)
            assert len(gain.live) <= gain.layers
    assert deep


def test_the_same_seed_gives_the_same_texts() -> None:
    def texts(seed: int) -> list[tuple[int, ...]]:
        pair = Pair(BeamSettings(3), seed=seed)
        pair.run()
        return [hypothesis.token_ids for hypothesis in pair.device.progress.hypotheses.best]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_with_one_cache_a_round_begins_from_its_best_beam() -> None:
    pair = Pair(BeamSettings(4, one_cache=True))
    while not pair.device.progress.done:
        pair.round()
        assert len(pair.device.progress.running) <= 1
        if pair.device.progress.running:
            best = max(step.logprob for step in pair.verdicts[-1].running)
            assert pair.device.progress.running[0].logprob == best


def test_a_dynamic_width_stays_within_its_limits() -> None:
    pair = Pair(BeamSettings(4, width_threshold=0.7, least_width=2))
    widths = set()
    while not pair.device.progress.done:
        pair.round(width=6)
        verdict = pair.verdicts[-1]
        widths.add(len(verdict.running) + len(verdict.finished))
    assert max(len(verdict.running) for verdict in pair.verdicts) <= 4
    assert len(widths) > 1


def test_the_cloud_can_draw_layers_alone() -> None:
    pair = Pair(BeamSettings(2))
    frame = pair.device.send(pair.device.progress.numbering(), Forest(), layers=3)
    pair.answer(pair.cloud.receive(frame))
    for _ in range(2):
        assert pair.device.waits
        pair.answer(pair.cloud.alone())
    assert not pair.device.waits
    assert pair.device.progress.length == 3


def test_a_dropped_beam_is_finished_on_both_ends() -> None:
    pair = Pair(BeamSettings(3, stops=True))
    pair.round()
    beam = pair.device.progress.running[1]
    pair.device.stop([1], lambda finished: [])
    pair.round()
    dropped = [
        hypothesis for hypothesis in pair.cloud.progress.hypotheses.best if hypothesis.token_ids == beam.token_ids
    ]
    assert [hypothesis.finish_reason for hypothesis in dropped] == ["stop"]


def test_a_resumed_text_goes_on_from_its_running_beams() -> None:
    pair = Pair(BeamSettings(2), temperature=0.0)
    whole = Pair(BeamSettings(2), temperature=0.0)
    whole.run()
    pair.round()
    progress = pair.device.progress
    settings = BeamSettings(2, running=tuple(progress.running), finished=tuple(progress.hypotheses.best))
    resumed = Pair(settings, temperature=0.0)
    resumed.run()
    assert resumed.device.progress.hypotheses == whole.device.progress.hypotheses


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (BeamSettings(2, running=(RunningBeam((8,), -1.0, -1.0),)), "running: 8 is not in a vocabulary of 8"),
        (BeamSettings(2, finished=(Hypothesis((9,), -1.0, "stop"),)), "running: 9 is not in a vocabulary of 8"),
        (BeamSettings(0), r"num_beams: 0 is outside \[1, 8\]"),
        (BeamSettings(9), r"num_beams: 9 is outside \[1, 8\]"),
        (BeamSettings(2, least_width=3), r"least_width: 3 is outside \[1, 2\]"),
        (BeamSettings(2, width_threshold=0.0), r"width_threshold: 0 is outside \(0, 1\]"),
        (BeamSettings(2, length_penalty=float("nan")), r"length_penalty: nan is outside \[-10, 10\]"),
        (BeamSettings(2, length_penalty=1e4), r"length_penalty: 10000.0 is outside \[-10, 10\]"),
        (BeamSettings(1, running=(RunningBeam((1,), -1.0, -1.0),) * 2), r"running: 2 beams of \[1\] tokens"),
        (
            BeamSettings(2, running=(RunningBeam((1,), -1.0, -1.0), RunningBeam((1, 2), -1.0, -1.0))),
            r"running: 2 beams of \[1, 2\] tokens",
        ),
        (BeamSettings(2, running=(RunningBeam((1,) * 12, -1.0, -1.0),)), r"running: 1 beams of \[12\] tokens"),
        (
            BeamSettings(2, running=(RunningBeam((1,), 0.5, -1.0),)),
            "running: the log-probability 0.5 is not finite, or above 0",
        ),
    ],
)
def test_impossible_settings_are_refused(settings: BeamSettings, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Pair(settings)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (ForestFrame(3, Forest()), "round: 3; the next one is 0"),
        (ForestFrame(0, Forest(), dropped=(1,)), "forest: dropped: 1 is none of the 1 running beams"),
        (ForestFrame(0, Forest(), copies=(0,)), "forest: copies: 0 is none of the 0 finished texts"),
        (ForestFrame(0, Forest(stopped=(1,))), "forest: stopped: 1 is none of the nodes 1 to 0"),
        (ForestFrame(0, Forest(stopped=(0,))), "forest: stopped: 0 is none of the nodes 1 to 0"),
        (ForestFrame(0, Forest(layers=((Draw(0, 0),),))), "forest: rows: 0 in layer 0"),
        (
            ForestFrame(0, Forest((DraftRow((1, 8), b"\0\1"),), ((Draw(0, 0),),))),
            "forest: row: 8 is not in a vocabulary of 8",
        ),
        (ForestFrame(0, Forest(layers=((),) * 12)), "forest: layers: 12, and 12 tokens are left"),
    ],
)
def test_an_impossible_forest_is_refused(frame: ForestFrame, message: str) -> None:
    with pytest.raises(ProtocolViolation, match=message):
        Pair(BeamSettings(2, stops=True)).cloud.receive(frame)


@pytest.mark.parametrize(
    "frame",
    [
        ForestFrame(0, Forest(), dropped=(0,)),
        ForestFrame(0, Forest(), copies=(0,)),
        ForestFrame(0, Forest((DraftRow((1,), b"\0"),), ((Draw(0, 0),),), stopped=(1,))),
    ],
)
def test_texts_stop_only_if_that_was_announced(frame: ForestFrame) -> None:
    with pytest.raises(ProtocolViolation, match="no stop strings were announced|none of the 0 finished texts"):
        Pair(BeamSettings(2)).cloud.receive(frame)


_STEP = BeamStep(0, 3, -1.0, -1.0)


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        (BeamVerdict(1, (_STEP,), ()), "round: a verdict on 1, and 0 is the next"),
        (BeamVerdict(0, (_STEP,) * 3, ()), "running: 3 beams, and num_beams is 2"),
        (BeamVerdict(0, (), ()), "running: no beam at all"),
        (BeamVerdict(0, (_STEP._replace(node=9),), ()), "node: 9 is none of the"),
        (BeamVerdict(0, (_STEP._replace(token_id=VOCABULARY),), ()), "token_id: 8 is not in a vocabulary of 8"),
        (BeamVerdict(0, (_STEP._replace(token_id=None),), ()), "running: a beam of 0 new tokens"),
        (BeamVerdict(0, (_STEP, _STEP._replace(node=1)), ()), "running: beams of different lengths"),
        (BeamVerdict(0, (_STEP._replace(log_p=1.0),), ()), "log_p: 1 and -1 are no log-probabilities"),
        (BeamVerdict(0, (_STEP,), (_STEP._replace(logprob=float("nan")),)), "log_p: -1 and nan are no"),
        (
            BeamVerdict(0, (_STEP,), (), live=(3,)),
            r"needed: \[\] of \[3\] draws in 1 layers; the forest has \[2\] draws",
        ),
        (BeamVerdict(0, (_STEP,), (), live=(1,), needed=(2,)), r"needed: \[2\] of \[1\] draws in 1 layers"),
        (BeamVerdict(0, (_STEP,), (), live=(1, 1)), r"needed: \[\] of \[1, 1\] draws in 1 layers"),
    ],
)
def test_an_impossible_verdict_is_refused(verdict: BeamVerdict, message: str) -> None:
    pair = Pair(BeamSettings(2))
    draft = ForestDraft(pair.device.progress, len(PROMPT), width=2, row_tokens=4, temperature=1.0)
    grow(draft, [()], 1)
    pair.device.send(draft.numbering, draft.forest())
    with pytest.raises(ProtocolViolation, match=message):
        pair.device.receive(verdict)


def test_a_verdict_without_a_question_is_refused() -> None:
    pair = Pair(BeamSettings(2))
    with pytest.raises(ProtocolViolation, match="round: a verdict on 0, and 0 is the next"):
        pair.device.receive(BeamVerdict(0, (_STEP,), ()))


def test_a_generation_that_is_done_takes_no_forest() -> None:
    pair = Pair(BeamSettings(1, early_stopping=True), tokens=1)
    pair.run()
    assert pair.device.progress.done
    with pytest.raises(ProtocolViolation, match="no beam can improve the text; send a Close"):
        pair.cloud.receive(ForestFrame(pair.cloud.progress.round, Forest()))


def test_one_forest_at_a_time_is_on_its_way() -> None:
    pair = Pair(BeamSettings(2))
    pair.device.send(pair.device.progress.numbering(), Forest())
    with pytest.raises(ValueError, match="send: a verdict is on its way"):
        pair.device.send(pair.device.progress.numbering(), Forest())
    with pytest.raises(ValueError, match="stop: a verdict is on its way"):
        pair.device.stop([0], lambda finished: [])
