"""Pulls without a model: sources, leftovers, failures, progress, and the list."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from pathlib import Path

import pytest

from chaperone_common.artefacts.folders import ROLES, Role
from chaperone_common.artefacts.manifest import CHAT_TEMPLATE_NAME, ManifestFile, ModelManifest, file_sha256
from chaperone_common.artefacts.registry import PretrainedSource, TinySource, load_registry
from chaperone_common.artefacts.sources import content_of
from chaperone_common.errors import ModelError, TokenizerMismatch
from cloud_supervisor.cli import main
from cloud_supervisor.export.failures import as_model_errors, reason_in
from cloud_supervisor.export.patience import signs_of_life
from cloud_supervisor.export.pull import pull
from cloud_supervisor.export.workplace import Workplace
from cloud_supervisor.pairs.listing import list_pairs

PULL = ["models", "pull", "--pair", "mine"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHAPERONE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def silent(_: str) -> None:
    pass


def write_registry(path: Path, name: Path | str) -> Path:
    quoted = json.dumps(str(name))
    models = [
        f"    {role}: {{model: my-{role}, licence: none, weights: {{source: pretrained, name: {quoted}}}}}"
        for role in ROLES
    ]
    path.write_text("\n".join(["pairs:", "  mine:", *models]))
    return path


def write_artefact(home: Path, role: Role, source: Path | str, **fields: object) -> Path:
    """Write an artefact with a chat template but without a model, as `write_registry` describes it."""
    folder = home / "models" / "mine" / role
    folder.mkdir(parents=True, exist_ok=True)
    template = folder / CHAT_TEMPLATE_NAME
    template.write_text(str(fields.pop("template", "{{ messages }}")))
    recipe: dict[str, object] = {"dtype": "bfloat16", "end_of_text": []}
    if role == "edge":
        recipe = {"precision": "int4", "algorithm": "k_quant_last", "accuracy_level": 4, "block_size": 32}
    valid: dict[str, object] = {
        "pair": "mine",
        "role": role,
        "model": f"their-{role}",
        "source": {"source": "pretrained", "name": str(source)},
        "recipe": recipe,
        "versions": {},
        "tokenizer_digest": f"sha256:{'0' * 64}",
        "vocabulary_size": 4,
        "eos_token_ids": (3,),
        "context_tokens": 8,
        "files": {template.name: ManifestFile(bytes=template.stat().st_size, sha256=file_sha256(template))},
    }
    manifest = ModelManifest(**{**valid, **fields})  # type: ignore[arg-type]
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


# --- Sources ---------------------------------------------------------------------------------------------------------


def write_weights(folder: Path) -> PretrainedSource:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return PretrainedSource(source="pretrained", name=str(folder))


def test_a_folder_is_identified_by_its_content(tmp_path: Path) -> None:
    source = write_weights(tmp_path / "one")
    first = content_of(source)
    assert first is not None
    assert first == content_of(write_weights(tmp_path / "two")), "its path does not matter"
    for name in ("README.md", ".git"):
        (tmp_path / "one" / name).write_text("nothing that is loaded")
    assert content_of(source) == first
    (tmp_path / "one" / "model.safetensors").write_bytes(b"Weights")
    second = content_of(source)
    (tmp_path / "one" / "model.safetensors").rename(tmp_path / "one" / "other.safetensors")
    assert len({first, second, content_of(source)}) == 3


def test_sources_without_a_folder_have_no_content_digest(tmp_path: Path) -> None:
    assert content_of(PretrainedSource(source="pretrained", name=str(tmp_path / "absent"))) is None
    assert content_of(PretrainedSource(source="pretrained", name="~nobody_such/model")) is None
    assert content_of(TinySource(source="tiny", seed=0)) is None


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "models/of/mine", "~nobody_such/model", "my model"])
def test_a_mistyped_folder_is_reported(
    tmp_path: Path, home: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = write_registry(tmp_path / "models.yaml", name)
    assert main([*PULL, "--registry", str(registry)]) == 1
    assert capsys.readouterr().err == (
        f"chaperone-cloud: my-edge: weights.name: {name!r} does not exist; name a folder, or a model on a hub\n"
    )
    assert not home.exists(), "no work was begun"


def is_current(registry: Path) -> bool:
    """Return whether a pull has nothing to do; otherwise it fails, because the folder holds no model."""
    said: list[str] = []
    try:
        pull("mine", registry_path=registry, say=said.append, progress=False)
    except ModelError:
        return False
    return said == ["mine: already there"]


def test_changed_weights_and_missing_special_tokens_are_pulled_again(tmp_path: Path, home: Path) -> None:
    source = write_weights(tmp_path / "weights")
    registry = write_registry(tmp_path / "models.yaml", source.name)
    for role in ROLES:
        write_artefact(home, role, source.name, content=content_of(source))
    assert is_current(registry)
    write_artefact(home, "edge", source.name, content=content_of(source), template="{{ bos_token }}{{ messages }}")
    assert not is_current(registry), "made by a version without special_tokens.json"
    write_artefact(home, "edge", source.name, content=content_of(source))
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"other")
    assert not is_current(registry)


# --- Leftovers -------------------------------------------------------------------------------------------------------


def hidden(home: Path) -> set[str]:
    return {path.name for path in (home / "models").iterdir() if path.name.startswith(".") and path.is_dir()}


def test_leftovers_are_removed_next_to_a_complete_pair(tmp_path: Path, home: Path) -> None:
    source = write_weights(tmp_path / "weights")
    registry = write_registry(tmp_path / "models.yaml", source.name)
    for role in ROLES:
        write_artefact(home, role, source.name, content=content_of(source))
    names = (".building-mine.1", ".replaced-mine.2", ".building-of-mine.3")
    for name in names:
        (home / "models" / name / "edge").mkdir(parents=True)
    with (home / "models" / ".mine.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert is_current(registry)
        assert hidden(home) == {*names}, "another pull is running"
    assert is_current(registry)
    assert hidden(home) == {".building-of-mine.3"}, "of another pair, whose name has the same end"


def test_a_failed_build_keeps_the_existing_files(home: Path) -> None:
    workplace = Workplace(home / "models", "mine")
    for text in ("old", "new"):
        with workplace.locked(silent), workplace.building() as folder:
            (folder / "text").write_text(text)

    def break_off() -> None:
        with workplace.locked(silent), workplace.building() as folder:
            (folder / "text").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert (home / "models" / "mine" / "text").read_text() == "new"
    assert hidden(home) == set()


# --- Failures --------------------------------------------------------------------------------------------------------

FAILURES = [
    (OSError(errno.ENOSPC, "", "HOME/models/.building-mine.x/model"), "HOME: no room to write: No space left on dev"),
    (OSError(errno.ENOSPC, ""), "HOME: no room to write: No space left on device; free some"),
    (OSError(errno.EROFS, "", "HOME/models"), "HOME: cannot be written: Read-only file system; set"),
    (PermissionError(errno.EACCES, "", "/elsewhere/x"), "mine: failed: /elsewhere/x: Permission denied"),
    (Exception("IoError(Os { code: 28 }): write (os error 28)"), "HOME: no room to write: No space left on device"),
    (MemoryError(), "mine: failed: not enough memory"),
    (KeyError("layers"), "mine: failed: KeyError: 'layers'"),
    (ValueError("\n the first\nand more"), "mine: failed: ValueError: the first"),
    (TokenizerMismatch("ours"), "ours"),
]


@pytest.mark.parametrize(("error", "words"), FAILURES, ids=[words for _, words in FAILURES])
def test_every_failure_is_one_line(tmp_path: Path, error: Exception, words: str) -> None:
    if isinstance(error, OSError) and error.filename is not None:
        error.filename = error.filename.replace("HOME", str(tmp_path))
    with pytest.raises((ModelError, TokenizerMismatch)) as caught, as_model_errors("mine: failed", tmp_path):
        raise error
    assert str(caught.value).startswith(words.replace("HOME", str(tmp_path)))
    assert "\n" not in str(caught.value)


LOGS = [
    (
        'a line\nTraceback (most recent call last):\n  File "x"\n    f()\nNoError: SCRATCH/w/x is bad\n',
        1,
        "NoError: the model is bad",
    ),
    ("one\ntwo\n\nthree\n", 1, "one | two | three"),
    ("", 3, "it said nothing, exit code 3"),
    ("anything", -9, "it was ended by SIGKILL, which a lack of memory may cause"),
]


@pytest.mark.parametrize(("log", "code", "reason"), LOGS, ids=[reason for _, _, reason in LOGS])
def test_the_reason_is_found_in_a_log(tmp_path: Path, log: str, code: int, reason: str) -> None:
    assert reason_in(log.replace("SCRATCH", str(tmp_path)), code, tmp_path) == reason


def test_a_long_step_reports_its_progress() -> None:
    said: list[str] = []
    enough = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            enough.set()

    with signs_of_life("mine: quantising", say, on_terminal=False, every_s=0.01):
        assert enough.wait(10)
    assert said[0].startswith("mine: quantising: at work for ")
    assert "signs-of-life" not in {thread.name for thread in threading.enumerate()}


# --- The list --------------------------------------------------------------------------------------------------------


def test_the_list_shows_models_on_disk_too(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_artefact(home, "edge", "somewhere")
    (write_artefact(home, "cloud", "somewhere") / CHAT_TEMPLATE_NAME).unlink()
    (home / "models" / ".building-tiny.x").mkdir()
    (home / "models" / "empty").mkdir()
    states = {state.pair: state for state in list_pairs()}
    assert set(states) == {*load_registry().pairs, "empty", "mine"}
    assert (states["mine"].registered, states["tiny"].registered) == (False, True)
    assert (states["mine"].edge.presence, states["mine"].edge.model) == ("here", "their-edge")
    assert (states["mine"].cloud.presence, states["mine"].cloud.model) == ("broken", "their-cloud")
    assert states["tiny"].edge.presence == "not pulled"
    assert states["empty"].edge.presence == "broken"
    assert main(["models", "list"]) == 0
    shown = capsys.readouterr().out
    assert "mine             edge   here        their-edge  (of another registry)\n" in shown
    assert f"{CHAT_TEMPLATE_NAME}: it is missing" in shown


# --- Flags -----------------------------------------------------------------------------------------------------------

WRONG = [
    (["models", "pull", "--pair", ""], "--pair: '': it is not a name"),
    (["models", "pull", "--pair", "../x"], "--pair: '../x': it is not a name"),
    (["models", "list", "--registry", ""], "--registry: '': it is empty"),
    (["models", "list", "--registry", os.curdir], "--registry: '.': a folder, not a file"),
    (["models", "pull", "--registry", "absent.yaml"], "--registry: 'absent.yaml': no such file"),
    (["serve", "--config", ""], "--config: '': it is empty"),
    (["serve", "--pair", ""], "--pair: '': it is not a name"),
    (["serve", "--listen", ""], "--listen: '': it is empty"),
    (["serve", "--listen", "127.0.0.1"], "--listen: '127.0.0.1': there is no port"),
    (["serve", "--listen", "::1"], "--listen: '::1': it has several colons"),
    (["serve", "--listen", "127.0.0.1:x"], "--listen: '127.0.0.1:x': 'x' is no port"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[words for _, words in WRONG])
def test_a_wrong_flag_is_reported_with_its_value(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_the_same_settings_in_a_file_are_reported_with_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cloud.yaml"
    path.write_text('pair: ""\nlisten: 127.0.0.1\n')
    assert main(["serve", "--config", str(path)]) == 2
    complaints = capsys.readouterr().err
    assert f"{path}:1: pair: '': it is not a name" in complaints
    assert f"{path}:2: listen: '127.0.0.1': there is no port" in complaints
