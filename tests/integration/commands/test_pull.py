"""`models pull` as a command: its refusals, its leftovers, and pairs of other kinds than the tiny one."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import psutil
import pytest

from chaperone_common.artefacts.folders import ROLES
from chaperone_common.artefacts.manifest import load_manifest
from cloud_supervisor.cli import main
from tests.support.models.onnx_builder import builder_in_process
from tests.support.processes.commands import ROOT, environment

pytestmark = pytest.mark.timeout(300)


PATIENCE_S = 120
BOS = "<|im_start|>"


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cloud_supervisor.cli", "models", "pull", *arguments],
        cwd=ROOT,
        env=environment(CHAPERONE_HOME=str(home)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Pull(Protocol):
    """Run `models pull` with these arguments; return its exit code, output and errors."""

    def __call__(self, *arguments: str) -> tuple[int, str, str]: ...


@pytest.fixture
def pull(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Pull]:
    """Yield the command in this process, builder included: a new process imports torch for ten seconds.

    `CHAPERONE_HOME` is the folder of the test.
    """
    monkeypatch.setenv("CHAPERONE_HOME", str(tmp_path))

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["models", "pull", *arguments])
        out, err = capfd.readouterr()
        return code, out, err

    with builder_in_process():
        yield run


def nothing_but_the_lock(home: Path) -> bool:
    return [path.name for path in (home / "models").iterdir()] in ([".mine.lock"], [".tiny.lock"])


def write_registry(folder: Path, edge: Path, cloud: Path) -> str:
    models = [
        f"    {role}: {{model: my-{role}, licence: none, weights: {{source: pretrained, name: {name}}}}}\n"
        for role, name in (("edge", edge), ("cloud", cloud))
    ]
    path = folder / "models.yaml"
    path.write_text("pairs:\n  mine:\n" + "".join(models))
    return str(path)


@pytest.fixture
def weights(tiny_pair: Path, tmp_path: Path) -> Path:
    """Return a folder that `from_pretrained` takes and that a test may change."""
    return Path(shutil.copytree(tiny_pair / "cloud", tmp_path / "weights"))


def rewrite(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# --- Pairs unlike the tiny one ----------------------------------------------------------------------------------------


def test_a_model_without_a_chat_template_is_pulled(weights: Path, tmp_path: Path) -> None:
    """Also that a new process, with all that it imports, complains of nothing."""
    (weights / "chat_template.jinja").unlink()
    process = start(tmp_path, "--pair", "mine", "--registry", write_registry(tmp_path, weights, weights))
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, "")
    assert "mine: ready in" in out
    edge = load_manifest(tmp_path / "models" / "mine" / "edge", role="edge", verify=True)
    assert set(edge.files) == {"model.onnx", "model.onnx.data", "tokenizer.json", "special_tokens.json"}
    load_manifest(tmp_path / "models" / "mine" / "cloud", role="cloud", verify=True)


def test_named_templates_and_special_tokens_reach_the_device(pull: Pull, weights: Path, tmp_path: Path) -> None:
    template = (weights / "chat_template.jinja").read_text()
    (weights / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": "{{ bos_token }}" + template}, {"name": "tool_use", "template": template}]
    extra = {"extra_special_tokens": {"image_token": "<|endoftext|>"}}
    rewrite(weights / "tokenizer_config.json", chat_template=named, bos_token=BOS, **extra)
    registry = write_registry(tmp_path, weights, weights)
    assert pull("--pair", "mine", "--registry", registry)[::2] == (0, "")
    folder = tmp_path / "models" / "mine" / "edge"
    first = load_manifest(folder, role="edge", verify=True)
    assert {path.name for path in folder.iterdir()} == {*first.files, "manifest.json"}
    assert (folder / "chat_template.jinja").read_text() == "{{ bos_token }}" + template
    tokens = json.loads((folder / "special_tokens.json").read_text())
    assert tokens == {
        "bos_token": BOS,
        "eos_token": "<|im_end|>",
        "image_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }

    said = "mine: already there\n"
    assert pull("--pair", "mine", "--registry", registry) == (0, said, "")
    rewrite(weights / "config.json", rms_norm_eps=1e-5)
    code, out, _ = pull("--pair", "mine", "--registry", registry)
    assert (code, said in out) == (0, False), "the folder holds other weights now"
    assert load_manifest(folder, role="edge").digest != first.digest


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_an_unknown_architecture_is_refused_before_anything_is_built(
    pull: Pull, tiny_pair: Path, weights: Path, tmp_path: Path, role: str
) -> None:
    rewrite(weights / "config.json", model_type="lfm2", architectures=["Lfm2ForCausalLM"])
    edge, cloud = (weights, tiny_pair / "cloud") if role == "edge" else (tiny_pair / "cloud", weights)
    code, out, err = pull("--pair", "mine", "--registry", write_registry(tmp_path, edge, cloud))
    assert (code, out) == (1, "")
    assert err.startswith(f"chaperone-cloud: my-{role}: ")
    assert "'lfm2'" in err
    assert err.count("\n") == 1
    assert nothing_but_the_lock(tmp_path)


NOT_THERE = [
    ("someone/a-model", "there is no such folder here, and HF_HUB_OFFLINE turns the hub off"),
    ("EMPTY", "my-edge: "),
]


@pytest.mark.parametrize(("name", "words"), NOT_THERE)
def test_a_source_without_a_model_is_named(pull: Pull, tmp_path: Path, name: str, words: str) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    source = Path(name.replace("EMPTY", str(empty)))
    code, out, err = pull("--pair", "mine", "--registry", write_registry(tmp_path, source, source))
    assert (code, "preparing" in out) == (1, False)
    assert words in err
    assert err.count("\n") == 1
    assert nothing_but_the_lock(tmp_path)


def code_that_comes_along(folder: Path, trap: Path) -> None:
    rewrite(folder / "config.json", model_type="mine", auto_map={"AutoConfig": "configuration.Mine"})
    (folder / "configuration.py").write_text(f"from pathlib import Path\nPath({str(trap)!r}).touch()\n")


def test_code_packaged_with_weights_never_runs(pull: Pull, weights: Path, tmp_path: Path) -> None:
    code_that_comes_along(weights, tmp_path / "trapped")
    code, _, err = pull("--pair", "mine", "--registry", write_registry(tmp_path, weights, weights))
    assert (code, err.count("\n")) == (1, 1), err
    assert not (tmp_path / "trapped").exists()


# --- Full disks and signals -------------------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Let this process write no larger files, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_of_error(pull: Pull, tmp_path: Path) -> None:
    with files_of_at_most(300 * 1024):  # room for the tokenizer, but not for the weights
        code, _, err = pull("--pair", "tiny")
    assert (code, err) == (
        1,
        f"chaperone-cloud: {tmp_path}: no room to write: File too large; "
        "free some, or set CHAPERONE_HOME to a folder with more\n",
    )
    assert nothing_but_the_lock(tmp_path)


def at_work(process: psutil.Process) -> bool:
    """Return whether a process runs. A process that has ended may stay a zombie for a while."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=str)
def test_a_signal_leaves_no_files_and_no_processes(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start(tmp_path, "--pair", "tiny")
    assert process.stdout is not None
    while "quantising" not in (line := process.stdout.readline()):
        assert line, process.communicate()
    children: list[psutil.Process] = []
    while not any(child.cpu_times().user > 0.1 for child in children):  # it works, after its start
        assert process.poll() is None, "the builder was never seen"
        time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (code, "")
    assert not [child for child in children if at_work(child)]
    assert nothing_but_the_lock(tmp_path)
