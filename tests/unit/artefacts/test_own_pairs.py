"""The registry of a user's own pairs: written whole, read back as it was, never replaced silently."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from chaperone_common.artefacts.own_pairs import add_pair
from chaperone_common.artefacts.registry import (
    CloudModel,
    EdgeModel,
    EdgeRecipe,
    Pair,
    PortableRecipe,
    PretrainedSource,
    default_registry,
    load_registry,
    own_registry,
)
from chaperone_common.artefacts.sources import source_of_text
from chaperone_common.errors import ConfigError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHAPERONE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def pair(name: str = "owner/small", **cloud: object) -> Pair:
    weights = PretrainedSource(source="pretrained", name=name)
    return Pair(
        edge=EdgeModel(model="small", licence="none", weights=weights),
        cloud=CloudModel(model="large", licence="none", weights=weights, **cloud),  # type: ignore[arg-type]
        tested=False,
    )


def test_an_added_pair_is_known_next_to_the_packaged_ones() -> None:
    assert add_pair("mine", pair())
    registry = load_registry()
    assert registry.pair("mine") == pair()
    assert registry.pairs.keys() == load_registry(default_registry()).pairs.keys() | {"mine"}


@pytest.mark.parametrize(
    "text", ["1e-3", "2026-11-30", "yes", "null", "0x10", "~", "- a", "{}", "a: b", "ü漢", "'", "#"]
)
def test_every_text_is_read_back_as_it_was(text: str) -> None:
    wanted = pair(text, end_of_text=(text, "<|im_end|>"))
    add_pair("mine", wanted)
    assert load_registry().pair("mine") == wanted


@pytest.mark.parametrize("text", ["\udcff", "a\x85b", "a\nb", "\x00", "\x7f", "\u2028"])
@pytest.mark.parametrize("field", ["licence", "model", "architecture", "end_of_text"])
def test_text_that_a_file_does_not_keep_is_refused(field: str, text: str) -> None:
    fields = {"model": "large", "licence": "none", field: (text,) if field == "end_of_text" else text}
    with pytest.raises(ConfigError, match=f"^{field}.*it holds the character .*; use printable text on one line"):
        CloudModel(weights=PretrainedSource(source="pretrained", name="owner/large"), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["\udcff", "a\x85b"])
def test_a_file_that_would_be_read_as_another_pair_is_not_written(name: str) -> None:
    add_pair("mine", pair())
    before = own_registry().read_bytes()
    unchecked = PretrainedSource.model_construct(source="pretrained", name=name)
    strange = Pair(edge=pair().edge, cloud=CloudModel(model="large", licence="none", weights=unchecked))
    with pytest.raises(ConfigError, match=r"'strange' would be read back as another pair, so nothing was written"):
        add_pair("strange", strange)
    assert own_registry().read_bytes() == before


def test_a_file_system_without_locks_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(_file: object, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(ConfigError, match="cannot be locked: No locks available; set CHAPERONE_HOME"):
        add_pair("mine", pair())
    assert not own_registry().exists()


def test_another_pair_is_not_replaced_unless_asked() -> None:
    add_pair("mine", pair())
    before = own_registry().read_bytes()
    with pytest.raises(ConfigError, match="NAME: 'mine' is another pair in .*models.yaml; .* --replace"):
        add_pair("mine", pair("owner/other"))
    assert own_registry().read_bytes() == before
    assert add_pair("mine", pair("owner/other"), replace=True)
    assert load_registry().pair("mine") == pair("owner/other")


def test_the_same_pair_again_changes_nothing() -> None:
    add_pair("mine", pair())
    before = own_registry().stat().st_mtime_ns
    assert not add_pair("mine", pair())
    assert own_registry().stat().st_mtime_ns == before


@pytest.mark.parametrize("replace", [False, True])
def test_a_packaged_name_is_refused(replace: bool) -> None:
    with pytest.raises(ConfigError, match="NAME: 'tiny' is a pair that comes with Chaperone; choose another name"):
        add_pair("tiny", pair(), replace=replace)
    assert not own_registry().exists()


def test_a_name_that_a_later_version_packages_stays_the_users(home: Path) -> None:
    home.mkdir()
    own_registry().write_text(
        "pairs: {tiny: {edge: {model: a, licence: none, weights: {source: pretrained, name: a}},"
        " cloud: {model: b, licence: none, weights: {source: pretrained, name: b}}}}"
    )
    assert load_registry().pair("tiny").edge.model == "a"


def test_a_mistake_in_the_users_file_is_reported_with_its_line_and_kept(home: Path) -> None:
    home.mkdir()
    own_registry().write_text("pairs:\n  mine:\n    egde: {}\n")
    with pytest.raises(ConfigError, match=r"models\.yaml:3: pairs\.mine\.egde: unknown key \(did you mean 'edge'"):
        add_pair("other", pair())
    assert own_registry().read_text() == "pairs:\n  mine:\n    egde: {}\n"


def test_a_folder_that_cannot_be_written_is_one_line(home: Path) -> None:
    own_registry().mkdir(parents=True)
    with pytest.raises(ConfigError, match="models.yaml: cannot be read: Is a directory"):
        add_pair("mine", pair())


def test_pairs_that_are_added_at_once_are_all_kept() -> None:
    names = [f"pair-{number}" for number in range(8)]
    threads = [threading.Thread(target=add_pair, args=(name, pair())) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load_registry().pairs.keys() >= set(names)


def test_a_recipe_with_an_exporter_is_the_portable_one(home: Path) -> None:
    home.mkdir()
    text = (
        "pairs: {mine: {edge: {model: a, licence: none, weights: {source: pretrained, name: a}, recipe: RECIPE},"
        " cloud: {model: b, licence: none, weights: {source: pretrained, name: b}}}}"
    )
    for recipe, expected in (
        ("{exporter: optimum}", PortableRecipe(exporter="optimum")),
        ("{algorithm: rtn_last}", EdgeRecipe(algorithm="rtn_last")),
    ):
        own_registry().write_text(text.replace("RECIPE", recipe))
        assert load_registry().pair("mine").edge.recipe == expected
    for recipe, complaint in (
        ("{exporter: optimun}", "recipe.exporter: 'optimun' is not 'optimum'"),
        ("{exporter: optimum, accuracy_level: 4}", "recipe.accuracy_level: unknown key"),
    ):
        own_registry().write_text(text.replace("RECIPE", recipe))
        with pytest.raises(ConfigError) as caught:
            load_registry()
        assert complaint in caught.value.message


def test_the_recipe_of_older_artefacts_is_unchanged() -> None:
    """A new key in it would make each pull convert the pairs of earlier versions again."""
    assert EdgeRecipe().model_dump() == {
        "precision": "int4",
        "algorithm": "k_quant_last",
        "accuracy_level": 4,
        "block_size": 32,
    }


def test_sources_are_folders_or_names_on_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "model.gguf").touch()
    monkeypatch.chdir(tmp_path)
    assert source_of_text("weights", "--edge").name == str(tmp_path / "weights")
    assert source_of_text("owner/name", "--edge").name == "owner/name"
    for text, complaint in (
        ("", "--edge: it is empty"),
        ("model.gguf", "--edge: 'model.gguf' is a file; name the folder"),
        ("./nowhere", "--edge: './nowhere' does not exist"),
        ("a/b/c", "--edge: 'a/b/c' does not exist"),
    ):
        with pytest.raises(ConfigError) as caught:
            source_of_text(text, "--edge")
        assert caught.value.message.startswith(complaint)
