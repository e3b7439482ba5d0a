"""A device's model that reads an encoding of its prompt: rows that are added to the embeddings of the first tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import ModelCorrupt, ModelError
from cloud_supervisor.export.graph_edits import add_conditioning
from edge_client.config import DeviceSettings
from edge_client.model.onnx_model import OnnxModel
from edge_client.model.onnx_sequence import OnnxSequence
from edge_client.model.prompt_cache import PromptCache
from edge_client.model.shared_model import SharedModel
from tests.support.models.conditioned import random_encoding, without_encodings

PROMPT = [5, 80, 33, 200, 41, 7, 9, 11]
REST = [3, 4, 60]


def loaded(folder: Path, edge: Path) -> OnnxModel:
    manifest = load_manifest(edge, role="edge")
    return OnnxModel.load(
        folder,
        threads=1,
        allow_spinning=False,
        vocabulary_size=manifest.vocabulary_size,
        context_tokens=manifest.context_tokens,
    )


@pytest.fixture(scope="module")
def model(tiny_pair: Path) -> Iterator[OnnxModel]:
    model = loaded(tiny_pair / "edge", tiny_pair / "edge")
    yield model
    model.close()


@pytest.fixture(scope="module")
def plain(tiny_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnnxModel]:
    folder = without_encodings(tiny_pair / "edge", tmp_path_factory.mktemp("plain") / "edge")
    model = loaded(folder, tiny_pair / "edge")
    yield model
    model.close()


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def inside() -> None:
        await work()

    asyncio.run(inside())


async def logits_of(sequence: OnnxSequence, token_ids: list[int]) -> np.ndarray:
    return (await sequence.step(token_ids)).logits.copy()


def test_without_an_encoding_the_model_reads_as_one_that_takes_none(model: OnnxModel, plain: OnnxModel) -> None:
    async def work() -> None:
        assert plain.graph.encoding_width == 0
        assert model.graph.encoding_width == 128
        for count in (1, 3, 8):
            one, other = plain.new_sequence(), model.new_sequence()
            assert np.array_equal(await logits_of(one, PROMPT[:count]), await logits_of(other, PROMPT[:count])), count

    run(work)


def test_an_encoding_changes_what_is_read_however_it_is_cut(model: OnnxModel) -> None:
    async def work() -> None:
        encoding = random_encoding(len(PROMPT))
        plain, whole, cut = model.new_sequence(), model.new_sequence(), model.new_sequence()
        whole.condition(encoding)
        cut.condition(encoding)
        without = await logits_of(plain, PROMPT)
        read = await logits_of(whole, PROMPT)
        for token_id in PROMPT:
            stepped = await logits_of(cut, [token_id])
        assert np.abs(read - without).max() > read.std()
        assert np.abs(read - stepped).max() < 0.1 * read.std()
        after = [await logits_of(sequence, REST) for sequence in (whole, cut)]  # beyond the encoding
        assert np.abs(after[0] - after[1]).max() < 0.1 * after[0].std()

    run(work)


def test_a_row_acts_on_its_own_token(model: OnnxModel) -> None:
    """Only the tokens from the first row that differs on are read again."""

    async def work() -> None:
        first, second = random_encoding(len(PROMPT)), random_encoding(len(PROMPT), seed=1)
        mixed = first.between(0, 5).followed_by(second.between(5, 8))
        sequence = model.new_sequence()
        sequence.condition(first)
        before = [step.logits.copy() async for step in sequence.read(PROMPT)]
        sequence.condition(first)
        assert sequence.length == len(PROMPT)
        sequence.condition(mixed)
        assert sequence.length == 5
        again = [step.logits.copy() async for step in sequence.read(PROMPT[5:])]
        assert not np.array_equal(before[5], again[0])
        fresh = model.new_sequence()
        fresh.condition(mixed)
        expected = [step.logits.copy() async for step in fresh.read(PROMPT)]
        assert np.array_equal(np.array(before[:5]), np.array(expected[:5]))
        assert np.abs(again[-1] - expected[-1]).max() < 0.1 * expected[-1].std()

    run(work)


@pytest.mark.parametrize(("before", "after", "kept"), [(None, 4, 0), (4, None, 0), (8, 4, 4), (4, 8, 4), (0, None, 10)])
def test_an_encoding_that_comes_or_goes_is_read_from_where_it_differs(
    model: OnnxModel, before: int | None, after: int | None, kept: int
) -> None:
    async def work() -> None:
        sequence = model.new_sequence()
        sequence.condition(None if before is None else random_encoding(8).between(0, before))
        await sequence.step([*PROMPT, 1, 2])
        sequence.condition(None if after is None else random_encoding(8).between(0, after))
        assert sequence.length == kept

    run(work)


def test_branches_and_rewinds_keep_the_rows_of_the_tokens_that_stay(model: OnnxModel) -> None:
    async def work() -> None:
        encoding = random_encoding(len(PROMPT))
        sequence = model.new_sequence(branches=2)
        sequence.condition(encoding)
        await sequence.step([*PROMPT, *REST])
        sequence.fork(1, len(PROMPT) + 1)
        branch = (await sequence.step_rows({1: 44}))[1].logits.copy()
        alone = model.new_sequence()
        alone.condition(encoding)
        expected = await logits_of(alone, [*PROMPT, REST[0], 44])
        assert np.abs(branch - expected).max() < 0.1 * expected.std()
        sequence.rewind(4)
        again = await logits_of(sequence, PROMPT[4:6])  # their rows went with the tokens
        other = model.new_sequence()
        other.condition(encoding.between(0, 4))
        expected = await logits_of(other, PROMPT[:6])
        assert np.abs(again - expected).max() < 0.1 * expected.std()
        with pytest.raises(ValueError, match="branch 2 is not forked"):
            await sequence.step_rows({2: 1})

    run(work)


def test_a_kept_text_is_known_with_its_encoding(model: OnnxModel) -> None:
    async def work() -> None:
        cache, encoding = PromptCache(), random_encoding(len(PROMPT))
        first = model.new_sequence(prompt_cache=cache)
        first.condition(encoding)
        await first.step([*PROMPT, *REST])
        first.close()
        second = model.new_sequence(prompt_cache=cache)
        second.condition(encoding)
        assert second.length == len(PROMPT) + len(REST)
        second.close()
        third = model.new_sequence(prompt_cache=cache)
        third.condition(None)
        assert third.length == 0

    run(work)


def test_rows_that_do_not_fit_are_refused(model: OnnxModel, plain: OnnxModel) -> None:
    async def work() -> None:
        sequence = model.new_sequence()
        with pytest.raises(
            ValueError, match="rows of width 128 from position 2 on; this model takes rows of width 128"
        ):
            sequence.condition(random_encoding(8).between(2, 4))
        with pytest.raises(ValueError, match="this model takes rows of width 0"):
            plain.new_sequence().condition(random_encoding(2))

    run(work)


def test_a_manifest_of_another_width_than_the_graphs_is_refused_when_the_model_is_loaded(
    tiny_pair: Path, tmp_path: Path
) -> None:
    folder = without_encodings(tiny_pair / "edge", tmp_path / "edge")
    manifest = load_manifest(tiny_pair / "edge", role="edge")
    model = SharedModel(folder, manifest, DeviceSettings(threads=1, allow_spinning=False))

    async def work() -> None:
        with pytest.raises(ModelCorrupt, match=r"projector of width 128, the graph takes encodings of width 0; .*pull"):
            await model.get()
        assert not model.loaded

    run(work)


def test_a_graph_without_one_place_for_embeddings_is_refused(tmp_path: Path) -> None:
    ids = onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, [1])
    same = onnx.helper.make_tensor_value_info("same", onnx.TensorProto.INT64, [1])
    node = onnx.helper.make_node("Identity", ["input_ids"], ["same"])
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [ids], [same])), str(path))
    with pytest.raises(ModelError, match="looks up embeddings at 0 places, not at one"):
        add_conditioning(path, 8)


def test_a_graph_with_embeddings_of_another_type_is_refused(tmp_path: Path) -> None:
    info, half = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT16
    ids = info("input_ids", onnx.TensorProto.INT64, [1])
    table = onnx.numpy_helper.from_array(np.zeros((4, 8), np.float16), "table")
    nodes = [
        onnx.helper.make_node("Gather", ["table", "input_ids"], ["embeddings"]),
        onnx.helper.make_node("Identity", ["embeddings"], ["same"]),
    ]
    graph = onnx.helper.make_graph(
        nodes, "g", [ids], [info("same", half, [1, 8])], [table], value_info=[info("embeddings", half, [1, 8])]
    )
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph), str(path))
    with pytest.raises(ModelError, match="embeddings are of type FLOAT16, and encodings are FLOAT"):
        add_conditioning(path, 8)
