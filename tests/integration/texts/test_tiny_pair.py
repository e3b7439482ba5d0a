"""The tiny pair: pulls that are killed, complete or repeated, and the agreement of its two models."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from chaperone_common.artefacts.folders import ROLES, Role
from chaperone_common.artefacts.manifest import ModelManifest, load_manifest
from chaperone_common.errors import ModelCorrupt, ModelMissing, TokenizerMismatch
from cloud_supervisor.export.pull import pull
from cloud_supervisor.pairs.listing import list_pairs
from tests.support.models.onnx_builder import builder_in_process
from tests.support.processes.commands import ROOT, environment

pytestmark = pytest.mark.timeout(600)

PULL = """
import sys
from cloud_supervisor.export.pull import pull
pull(sys.argv[1], say=print, progress=False)
"""

PULL_WITHOUT_TORCH = f"{PULL}assert 'torch' not in sys.modules\n"

PATIENCE_S = 120
TOKENS = 100
QUESTIONS = ("What is the time?", "Count from one to ten.", "Why is the sky blue?")


def start_pull(home: Path, pair: str, program: str = PULL) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, pair],
        cwd=ROOT,
        env=environment(CHAPERONE_HOME=str(home)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def pull_here(home: Path, pair: str, registry: Path | None = None) -> str:
    """Pull in this process, builder included, and return what the pull says; a new process imports torch first."""
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch, builder_in_process():
        patch.setenv("CHAPERONE_HOME", str(home))
        pull(pair, registry_path=registry, say=lines.append, progress=False)
    return "".join(f"{line}\n" for line in lines)


class Killed(NamedTuple):
    """The files of a pull that was killed while it made the device's model."""

    home: Path
    leftovers: list[str]
    loadable_roles: list[Role]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    home = tmp_path_factory.mktemp("home")
    process = start_pull(home, "tiny")
    deadline = time.monotonic() + PATIENCE_S
    while not list(home.glob("models/.building-tiny.*/cloud/model.safetensors")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the cloud model was not made in time"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    loadable = [role for role in ROLES if is_loadable(home / "models" / "tiny" / role, role)]
    return Killed(home, [path.name for path in (home / "models").iterdir()], loadable)


def is_loadable(folder: Path, role: Role) -> bool:
    try:
        load_manifest(folder, role=role)
    except ModelMissing:
        return False
    return True


@pytest.fixture(scope="module")
def pair(killed: Killed) -> Path:
    """Return the folder of the tiny pair, pulled after a pull was killed."""
    assert "tiny: ready in" in pull_here(killed.home, "tiny")
    return killed.home / "models" / "tiny"


@pytest.fixture
def home(pair: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHAPERONE_HOME", str(pair.parent.parent))
        yield pair.parent.parent


def test_a_killed_pull_leaves_nothing_that_loads(killed: Killed) -> None:
    assert killed.loadable_roles == []
    assert any(name.startswith(".building-tiny.") for name in killed.leftovers)
    assert "tiny" not in killed.leftovers


def test_a_pull_after_a_killed_one_is_complete_and_clean(pair: Path) -> None:
    edge, cloud = (load_manifest(pair / role, role=role, verify=True) for role in ROLES)
    texts = {"tokenizer.json", "chat_template.jinja", "special_tokens.json"}
    assert set(edge.files) == {"model.onnx", "model.onnx.data", *texts}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= set(cloud.files)
    assert (edge.tokenizer_digest, edge.vocabulary_size) == (cloud.tokenizer_digest, cloud.vocabulary_size)
    assert edge.files["chat_template.jinja"] == cloud.files["chat_template.jinja"]
    assert edge.vocabulary_size == 512
    assert sorted(path.name for path in pair.parent.iterdir()) == [".tiny.lock", "tiny"]
    for role in ROLES:
        present = {path.name for path in (pair / role).iterdir()}
        assert present == {*load_manifest(pair / role, role=role).files, "manifest.json"}


def test_a_second_pull_does_nothing(home: Path, pair: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in pair.rglob("*")}
    process = start_pull(home, "tiny", PULL_WITHOUT_TORCH)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, output) == (0, "tiny: already there\n")
    assert {path: path.stat().st_mtime_ns for path in pair.rglob("*")} == before
    state = next(state for state in list_pairs() if state.pair == "tiny")
    assert (state.edge.presence, state.cloud.presence) == ("here", "here")


def write_registry(path: Path, edge: Path | str, cloud: Path) -> Path:
    models = [
        f"    {role}: {{model: {role}-model, licence: none, weights: {{source: pretrained, name: {name}}}}}\n"
        for role, name in (("edge", edge), ("cloud", cloud))
    ]
    path.write_text("pairs:\n  mine:\n" + "".join(models))
    return path


def test_a_local_folder_can_be_the_source(home: Path, pair: Path, tmp_path: Path) -> None:
    registry = write_registry(tmp_path / "models.yaml", pair / "cloud", pair / "cloud")
    pull_here(home, "mine", registry)
    mine = load_manifest(home / "models" / "mine" / "edge", role="edge", verify=True)
    tiny = load_manifest(pair / "edge", role="edge")
    assert mine.model == "edge-model"
    assert mine.source == {"source": "pretrained", "name": str(pair / "cloud")}
    assert (mine.tokenizer_digest, mine.eos_token_ids) == (tiny.tokenizer_digest, tiny.eos_token_ids)
    cloud = load_manifest(home / "models" / "mine" / "cloud", role="cloud")
    assert cloud.files["model.safetensors"].bytes < 800_000  # bfloat16, where the source has float32
    assert pull_here(home, "mine", registry) == "mine: already there\n"


def test_two_vocabularies_are_refused(pair: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in (pair / "cloud").iterdir():
        content = path.read_bytes()
        if path.name == "tokenizer.json":
            content = content.replace(b"<|im_start|>", b"<|im_begin|>")
        (other / path.name).write_bytes(content)
    registry = write_registry(tmp_path / "models.yaml", other, pair / "cloud")
    with pytest.raises(TokenizerMismatch, match="^mine: the two models read different vocabularies"):
        pull_here(tmp_path, "mine", registry)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [".mine.lock"]


def test_a_damaged_model_is_pulled_again(home: Path, pair: Path) -> None:
    data = pair / "edge" / "model.onnx.data"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    with pytest.raises(ModelCorrupt, match=r"model\.onnx\.data: .*chaperone models pull --pair tiny --cloud"):
        load_manifest(pair / "edge", role="edge")
    assert "tiny: ready in" in pull_here(home, "tiny")
    assert data.read_bytes() == whole  # the same weights from the same seed


# --- Agreement of the two models ------------------------------------------------------------------------------------


def coupled_choice(logits: NDArray[np.float32], temperature: float, seed: int, position: int) -> int:
    """Apply the protocol's rule of choice by hand; `logits  # [vocabulary]`."""
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / temperature
    raw = np.random.Philox(key=[seed, 0], counter=[0, position, 0, 0]).random_raw(len(logits))
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return int((scaled - np.log(-np.log(uniform))).argmax())


def write_as_target(pair: Path, manifest: ModelManifest, prompt: list[int], temperature: float, seed: int) -> list[int]:
    """Let the cloud's model write TOKENS tokens, past the end of the text too."""
    model = AutoModelForCausalLM.from_pretrained(pair / "cloud")
    token_ids, past, pending = list(prompt), None, list(prompt)
    with torch.inference_mode():
        for _ in range(TOKENS):
            output = model(torch.tensor([pending]), past_key_values=past, use_cache=True)
            past = output.past_key_values
            logits = output.logits[0, -1, : manifest.vocabulary_size].numpy()
            pending = [coupled_choice(logits, temperature, seed, len(token_ids))]
            token_ids += pending
    return token_ids


def read_as_draft(pair: Path, token_ids: list[int]) -> NDArray[np.float32]:
    """Return the logits of the device's model after each token; [tokens, padded vocabulary]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(pair / "edge" / "model.onnx", options)
    feeds = {
        "input_ids": np.array([token_ids], dtype=np.int64),
        "attention_mask": np.ones((1, len(token_ids)), dtype=np.int64),
    }
    for port in session.get_inputs():
        if port.name.startswith("past_key_values"):
            feeds[port.name] = np.zeros((1, port.shape[1], 0, port.shape[3]), dtype=np.float32)
        elif port.name == "conditioning":
            feeds[port.name] = np.zeros((1, 1, port.shape[2]), dtype=np.float32)
    logits: NDArray[np.float32] = session.run(["logits"], feeds)[0][0]
    return logits


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_are_accepted_often_but_not_always(pair: Path, temperature: float) -> None:
    manifest = load_manifest(pair / "edge", role="edge")
    tokenizer = Tokenizer.from_file(str(pair / "edge" / "tokenizer.json"))
    accepted = written = 0
    for seed, question in enumerate(QUESTIONS):
        prompt = tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").ids
        token_ids = write_as_target(pair, manifest, prompt, temperature, seed)
        assert len(set(token_ids[len(prompt) :])) > TOKENS // 3  # no loop of a few tokens
        logits = read_as_draft(pair, token_ids)
        assert logits.shape[1] > manifest.vocabulary_size  # padded, as in real models
        for position in range(len(prompt), len(token_ids)):
            row = logits[position - 1, : manifest.vocabulary_size]
            accepted += coupled_choice(row, temperature, seed, position) == token_ids[position]
            written += 1
    assert 0.60 <= accepted / written <= 0.95
