"""Real models write the same texts together in virtual time as alone, without repeated requests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.quality.exploration.device_texts import ROWS, DeviceTexts
from benchmarks.quality.exploration.explored_models import ExploredModels
from benchmarks.quality.exploration.explorer import Explorer, RecordingModel
from benchmarks.quality.exploration.plain_texts import cloud_writes, device_reads, device_writes
from benchmarks.quality.exploration.text_tree import ROOT, TextTree, load_trees, save_trees
from benchmarks.quality.exploration.workload import write_all
from benchmarks.simulation.scenario import Scenario
from benchmarks.simulation.script import CLOUD_FILLER
from benchmarks.simulation.strategy import Strategy, strategy_for
from benchmarks.strategies.inexact import bild, uhlm
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import ConfigError, PromptTooLong
from chaperone_common.types import Mode, SamplingParams
from edge_client.gate import Always
from edge_client.model.drafter import ChoosingDrafter
from edge_client.model.onnx_model import OnnxModel
from edge_client.model.onnx_sequence import OnnxSequence
from edge_client.planner import AdaptivePlanner
from link_emulator.profile import Profile
from tests.support.cloud.forward import feeding

GREEDY = SamplingParams()
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def models(tiny_pair: Path) -> Iterator[tuple[OnnxModel, RecordingModel]]:
    edge, cloud = (load_manifest(tiny_pair / role, role=role) for role in ("edge", "cloud"))
    device = OnnxModel.load(
        tiny_pair / "edge",
        threads=1,
        allow_spinning=False,
        vocabulary_size=edge.vocabulary_size,
        context_tokens=edge.context_tokens,
    )
    yield device, RecordingModel.of_manifest(tiny_pair / "cloud", cloud, dtype="float32", threads=1)
    device.close()


@pytest.fixture
def trees() -> list[TextTree]:
    dice = Random(4)
    return [TextTree(f"text {index}", tuple(dice.choices(range(5, 60), k=dice.randint(3, 30)))) for index in range(6)]


def all_models(
    trees: list[TextTree], explorer: Explorer, *, lenient_nats: float | None = None, risk_is_disagreement: bool = False
) -> list[ExploredModels]:
    return [
        ExploredModels(
            tree,
            explorer,
            GREEDY,
            eos_token_ids=(0,),
            max_new_tokens=NEW_TOKENS,
            lenient_nats=lenient_nats,
            risk_is_disagreement=risk_is_disagreement,
        )
        for tree in trees
    ]


def cloud_text(model: RecordingModel, prompt: tuple[int, ...]) -> tuple[int, ...]:
    text = [*prompt]
    while len(text) < len(prompt) + NEW_TOKENS and (len(text) == len(prompt) or text[-1] != 0):
        [[choice]] = model.model.forward([feeding(model.model.kv_pool.new_cache(), text, 1, GREEDY)])
        text.append(choice.token_id)
    return tuple(text[len(prompt) :])


def edge_text(model: OnnxModel, prompt: tuple[int, ...]) -> tuple[int, ...]:
    async def write() -> tuple[int, ...]:
        drafter = ChoosingDrafter(model.new_sequence(), GREEDY)
        tokens = [(await drafter.step(prompt)).token_id]
        while len(tokens) < NEW_TOKENS and tokens[-1] != 0:
            tokens.append((await drafter.step(tokens[-1:])).token_id)
        drafter.close()
        return tuple(tokens)

    return asyncio.run(write())


class Counting(Explorer):
    """Counts the requests to the models."""

    asked = 0

    def _answer_proposals(self) -> Future[None]:
        self.asked += 1
        return super()._answer_proposals()

    def _answer_choices(self) -> None:
        self.asked += 1
        super()._answer_choices()


def test_explored_texts_equal_the_models_own(
    models: tuple[OnnxModel, RecordingModel], trees: list[TextTree], tmp_path: Path
) -> None:
    device, cloud = models
    scenario = Scenario(Profile.fixed(100.0))
    explorer = Counting(device, cloud, GREEDY)
    written = {
        mode: write_all(all_models(trees, explorer), scenario, strategy_for(mode))
        for mode in (Mode.EXACT, Mode.CLOUD, Mode.EDGE)
    }
    for index, tree in enumerate(trees):
        assert written[Mode.EXACT][index].error is None
        assert written[Mode.EXACT][index].token_ids == cloud_text(cloud, tree.prompt)
        assert written[Mode.CLOUD][index].token_ids == cloud_text(cloud, tree.prompt)
        assert written[Mode.EDGE][index].token_ids == edge_text(device, tree.prompt)
    asked = explorer.asked
    answers = sum(len(tree.proposals) + len(tree.choices) for tree in trees)
    assert 0 < asked < answers / 2, "many texts are answered at once"
    again = write_all(all_models(trees, explorer), scenario, strategy_for(Mode.EXACT))
    assert explorer.asked == asked, "no request is repeated"
    assert [one.token_ids for one in again] == [one.token_ids for one in written[Mode.EXACT]]

    save_trees(tmp_path / "trees.gz", {"pair": "tiny"}, trees)
    header, loaded = load_trees(tmp_path / "trees.gz")
    assert header["pair"] == "tiny"
    for tree in trees:
        known = loaded[tree.id]
        assert (known.prompt, known.parents, known.tokens) == (tree.prompt, tree.parents, tree.tokens)
        assert known.choices == tree.choices
        assert known.nats == pytest.approx(tree.nats, rel=1e-3)
        assert {node: proposal.token_id for node, proposal in known.proposals.items()} == {
            node: proposal.token_id for node, proposal in tree.proposals.items()
        }
    write_all(all_models([*loaded.values()], explorer), scenario, strategy_for(Mode.EXACT))
    assert explorer.asked == asked, "nor after it was saved"


def test_plain_texts_equal_the_engines_and_leave_no_requests(
    models: tuple[OnnxModel, RecordingModel], trees: list[TextTree]
) -> None:
    device, cloud = models
    begun = dict.fromkeys(trees, ROOT)
    explorer = Counting(device, cloud, GREEDY)
    clouds = cloud_writes(explorer, begun, eos_token_ids=(0,), max_new_tokens=NEW_TOKENS)
    device_reads(explorer, clouds)
    devices = device_writes(explorer, begun, eos_token_ids=(0,), max_new_tokens=NEW_TOKENS)
    for tree in trees:
        assert tuple(tree.tokens[node] for node in clouds[tree][1:]) == cloud_text(cloud, tree.prompt)
        assert tuple(tree.tokens[node] for node in devices[tree][1:]) == edge_text(device, tree.prompt)
        assert all(node in tree.proposals for node in clouds[tree][:-1])
    asked = explorer.asked
    for mode in (Mode.CLOUD, Mode.EDGE):
        write_all(all_models(trees, explorer), Scenario(), strategy_for(mode))
    assert explorer.asked == asked


ROUNDING = 0.25  # of logits between -12 and 12


def test_batched_texts_are_read_as_each_alone(models: tuple[OnnxModel, RecordingModel]) -> None:
    device, _ = models
    dice = Random(7)
    texts = {f"text {index}": dice.choices(range(5, 60), k=dice.randint(2, 40)) for index in range(ROWS + 8)}
    alone = {name: device.new_sequence() for name in texts}
    together = DeviceTexts(device)
    for _ in range(6):
        for name, logits in together.after(texts):
            sequence = alone[name]
            unread = texts[name][sequence.length :]
            expected = asyncio.run(sequence.step(unread)).logits
            # With AVX2 alone, kernels round by the number of rows, and 8-bit activations enlarge that to a step.
            # Logits differ by whole units if a row holds another text.
            assert np.abs(logits - expected).max() < ROUNDING, name
        for name, text in texts.items():
            if dice.random() < 0.2:  # another text with a common beginning
                kept = dice.randrange(1, len(text))
                del text[kept:]
                alone[name].rewind(min(kept, alone[name].length))
            elif dice.random() < 0.1:  # another text in its place
                together.leave(name)
                alone[name].rewind(0)
            text.append(dice.randrange(5, 60))


def test_a_text_is_read_along_in_chunks_on_any_row(models: tuple[OnnxModel, RecordingModel]) -> None:
    device, _ = models
    dice = Random(8)
    texts = DeviceTexts(device)
    [*texts.after({"another": [5, 6], "and one more": [7]})]
    for count in (1, 32, 33, 70):
        text = dice.choices(range(5, 60), k=80)
        sequence = device.new_sequence()
        asyncio.run(sequence.step(text[:-count]))
        expected = asyncio.run(read_by(sequence, text[-count:]))
        found = [logits.copy() for logits in texts.along("text", text, count)]
        assert len(found) == count
        assert all(map(np.array_equal, found, expected))


async def read_by(sequence: OnnxSequence, token_ids: list[int]) -> list[NDArray[np.float32]]:
    return [step.logits.copy() async for step in sequence.read(token_ids)]


def test_a_text_that_the_device_cannot_hold_is_refused(models: tuple[OnnxModel, RecordingModel]) -> None:
    device, _ = models
    texts = DeviceTexts(device)
    with pytest.raises(PromptTooLong, match=f"holds {device.context_tokens}"):
        [*texts.after({"long": [5] * (device.context_tokens + 1)})]
    [(_, logits)] = texts.after({"short": [5]})
    assert logits.shape == (device.vocabulary_size,)
    full = [5] * device.context_tokens
    [*texts.after({"long": full})]
    with pytest.raises(PromptTooLong, match=f"holds {device.context_tokens}"):
        [*texts.after({"long": [*full, 5], "short": [5, 6]})]
    [(_, logits)] = texts.after({"short": [5, 6]})
    sequence = device.new_sequence()
    asyncio.run(sequence.step([5]))
    assert np.array_equal(logits, asyncio.run(sequence.step([6])).logits)


def test_gated_texts_are_written_and_audited_to_the_end(
    models: tuple[OnnxModel, RecordingModel], trees: list[TextTree]
) -> None:
    explorer = Explorer(*models, GREEDY)
    for one, tree in zip(
        write_all(all_models(trees, explorer), Scenario(), strategy_for(Mode.GATED)), trees, strict=True
    ):
        assert one.error is None
        text, differing = [*tree.prompt], 0
        for token_id in one.token_ids:
            differing += explorer.choices(tree, [tree.node(text)]) != [token_id]
            text.append(token_id)
        assert one.stats.deviations == differing
        assert one.stats.audited_tokens == one.stats.skipped_tokens


def test_texts_begin_in_order(models: tuple[OnnxModel, RecordingModel], trees: list[TextTree]) -> None:
    began: list[float] = []

    def beginning() -> Always:
        began.append(asyncio.get_running_loop().time())
        return Always()

    strategy = Strategy("exact", AdaptivePlanner(Mode.EXACT), beginning)
    explorer = Explorer(*models, GREEDY)
    apart = write_all(all_models(trees, explorer), Scenario(), strategy, apart_s=0.25)
    assert began == pytest.approx([0.25 * index for index in range(len(trees))])
    together = write_all(all_models(trees, explorer), Scenario(), strategy)
    assert began[len(trees) :] == [0.0] * len(trees)
    assert [one.token_ids for one in apart] == [one.token_ids for one in together]


def test_a_lenient_cloud_accepts_near_misses(models: tuple[OnnxModel, RecordingModel], trees: list[TextTree]) -> None:
    lenient = bild("bild", 0.0, 1e9)
    strict = bild("bild", 0.0, 0.0)
    explorer = Explorer(*models, GREEDY)
    exact = write_all(all_models(trees, explorer), Scenario(), Strategy("exact", AdaptivePlanner(Mode.EXACT), Always))
    anything = write_all(all_models(trees, explorer, lenient_nats=1e9), Scenario(), lenient)
    nothing = write_all(all_models(trees, explorer, lenient_nats=0.0), Scenario(), strict)
    assert [one.token_ids for one in nothing] == [one.token_ids for one in exact]
    assert [one.token_ids for one in anything] != [one.token_ids for one in exact]
    asking = write_all(all_models(trees, explorer, risk_is_disagreement=True), Scenario(), uhlm("uhlm", 0.0))
    assert [one.token_ids for one in asking] == [one.token_ids for one in exact]


def test_choices_after_an_override_are_void_until_its_token_is_kept(
    models: tuple[OnnxModel, RecordingModel], trees: list[TextTree]
) -> None:
    explorer = Explorer(*models, GREEDY)
    tree = trees[0]
    [one] = all_models([tree], explorer)
    [first] = one.choices(tree.prompt, 1)
    text = (*tree.prompt, first + 1, 7, 8)
    assert one.choices(text, 4) == [first, CLOUD_FILLER, CLOUD_FILLER, CLOUD_FILLER]
    assert one.choices(text, 1) == [CLOUD_FILLER], "a branch is void, too"
    assert tree.choices.keys() == {ROOT}, "nothing is asked about a void text"
    one.keep(len(tree.prompt))
    assert CLOUD_FILLER not in one.choices(text, 2)
    one.drop(len(tree.prompt))
    assert one.choices(text, 4)[1:] == [CLOUD_FILLER] * 3


def test_a_tree_knows_texts_by_their_tokens() -> None:
    tree = TextTree("a", (1, 2))
    node = tree.node([1, 2, 3, 4])
    assert tree.node([1, 2, 3, 4]) == node
    assert tree.node([1, 2]) == ROOT
    assert tree.text(node) == [1, 2, 3, 4]
    assert tree.path(node) == [ROOT, tree.node([1, 2, 3]), node]
    with pytest.raises(ValueError, match="not the prompt of a"):
        tree.node([1, 3])


def test_an_invalid_file_of_texts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.gz"
    path.write_bytes(b"no")
    with pytest.raises(ConfigError, match="not a file of explored texts"):
        load_trees(path)
