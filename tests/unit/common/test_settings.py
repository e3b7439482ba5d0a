"""Configuration files are read strictly, errors name place and problem, and manifests protect the artefacts."""

from __future__ import annotations

import hashlib
import json
import pwd
import struct
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from chaperone_common.artefacts.folders import chaperone_home, pair_folder
from chaperone_common.artefacts.manifest import ManifestFile, ModelManifest, file_sha256, load_manifest
from chaperone_common.artefacts.vocabulary import vocabulary_digest
from chaperone_common.errors import ConfigError, ModelCorrupt, ModelError, ModelMissing
from chaperone_common.settings import FrozenModel, RelativePath, load_yaml
from chaperone_common.settings.packaged import found_config, packaged_path


class Gate(FrozenModel):
    policy: Literal["always", "never"] = "always"
    max_deviation: float = Field(ge=0, le=1, default=0.02)


class Wire(FrozenModel):
    kind: Literal["wire"]
    name: str


class Air(FrozenModel):
    kind: Literal["air"]
    watts: float


class Settings(FrozenModel):
    gate: Gate = Gate()
    threads: int = 1
    spinning: bool = False
    address: str | None = None
    stops: tuple[str, ...] = ()
    links: dict[str, Annotated[Wire | Air, Field(discriminator="kind")]] = Field(default_factory=dict)


class Required(FrozenModel):
    model: str


# Nine names, each nine times the previous one: 200 bytes represent 400 million values.
BOMB = "0: &0 x\n" + "".join(f"{n}: &{n} [{', '.join([f'*{n - 1}'] * 9)}]\n" for n in range(1, 10))


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "edge.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def complaint(tmp_path: Path, text: str | bytes, model: type[FrozenModel] = Settings) -> str:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_yaml(path, model)
    return str(caught.value).replace(f"{path}", "edge.yaml")


def test_values_of_the_right_type_are_accepted(tmp_path: Path) -> None:
    text = (
        "# a comment\ngate: {max_deviation: 1}\nthreads: 2\nspinning: true\nstops: [a, b]\n"
        "links:\n  home: {kind: air, watts: 1e-3}\n  lan: {kind: wire, name: '1e3'}\n"
    )
    settings = load_yaml(write(tmp_path, text), Settings)
    assert settings.gate == Gate(policy="always", max_deviation=1.0)
    assert settings.stops == ("a", "b")
    assert settings.links == {"home": Air(kind="air", watts=0.001), "lan": Wire(kind="wire", name="1e3")}


@pytest.mark.parametrize(
    ("text", "watts"), [("1e-3", 0.001), ("-2E2", -200.0), ("+1e0", 1.0), ("1.5", 1.5), ("1_000", 1000), (".5", 0.5)]
)
def test_numbers_may_have_an_exponent(tmp_path: Path, text: str, watts: float) -> None:
    settings = load_yaml(write(tmp_path, f"links: {{home: {{kind: air, watts: {text}}}}}\n"), Settings)
    assert settings.links == {"home": Air(kind="air", watts=watts)}


@pytest.mark.parametrize("text", ["2001-01-01", "'1e3'", "!!str 1e3", "1e3x", "12:30 h"])
def test_dates_and_quoted_numbers_are_text(tmp_path: Path, text: str) -> None:
    settings = load_yaml(write(tmp_path, f"address: {text}\n"), Settings)
    assert settings.address == text.removeprefix("!!str ").strip("'")


def test_a_byte_order_mark_and_an_alias_are_read(tmp_path: Path) -> None:
    assert load_yaml(write(tmp_path, "\ufeffaddress: &here home\nstops: [*here]\n"), Settings).stops == ("home",)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "gate:\n  policy: always\n"])
def test_an_absent_setting_has_its_default(tmp_path: Path, text: str) -> None:
    assert load_yaml(write(tmp_path, text), Settings) == Settings()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("threads: 1\n\ngate:\n  polcy: always\n", "edge.yaml:4: gate.polcy: unknown key (did you mean 'policy'?)"),
        ("xyzzy: 1\n", "edge.yaml:1: xyzzy: unknown key (known: address, gate, links, spinning, stops, threads)"),
        ("gate:\n  max_deviation: hot\n", "edge.yaml:2: gate.max_deviation: 'hot' is not a number"),
        ("threads: 1.5\n", "edge.yaml:1: threads: 1.5 is not a whole number"),
        ("threads: '2'\n", "edge.yaml:1: threads: '2' is not a whole number"),
        ("spinning: 1\n", "edge.yaml:1: spinning: 1 is not true or false"),
        ("address: no\n", "edge.yaml:1: address: false is not text; put it in quotes"),
        ("stops: end\n", "edge.yaml:1: stops: 'end' is not a list"),
        ("stops:\n  - a\n  - [b]\n", "edge.yaml:3: stops.1: ['b'] is not text"),
        ("gate: 3\n", "edge.yaml:1: gate: 3 is not a table of keys"),
        ("- 3\n", "edge.yaml:1: the file: [3] is not a table of keys"),
        ("gate:\n  policy: often\n", "edge.yaml:2: gate.policy: 'often' is not 'always' or 'never'"),
        ("gate:\n  max_deviation: 2\n", "edge.yaml:2: gate.max_deviation: 2: input should be less than or equal to 1"),
        ("gate:\n  max_deviation: .nan\n", "edge.yaml:2: gate.max_deviation: '.nan' is not a plain value"),
        ("links:\n  a: {name: x}\n", "edge.yaml:2: links.a.kind: this key is required"),
        ("links:\n  a:\n    kind: wier\n", "edge.yaml:3: links.a.kind: 'wier' is not 'wire' or 'air'"),
        ("links: {a: {kind: wire, nam: x, name: x}}", "edge.yaml:1: links.a.nam: unknown key (did you mean 'name'?)"),
        ("threads: 1\nthreads: 2\n", "edge.yaml:2: threads: given twice; remove one"),
        ("gate:\n  policy: never\n  policy: never\n", "edge.yaml:3: gate.policy: given twice; remove one"),
        ("? [a]\n: 1\n", "edge.yaml:1: the file: keys must be plain names"),
        ("threads: !!python/name:os.system x\n", "edge.yaml:1: threads: 'x' has a tag that is not allowed here"),
        ("a: &a [*a]\n", "edge.yaml: nested too deeply"),
        ("<<: {threads: 2}\n", "edge.yaml:1: the file: keys must be plain names"),
        ("threads: 2001-01-01\n", "edge.yaml:1: threads: '2001-01-01' is not a whole number"),
        ("threads: !!timestamp 2001-01-01\n", "edge.yaml:1: threads: '2001-01-01' is not a plain value"),
        (f"{'[' * 2000}{']' * 2000}\n", "edge.yaml: nested too deeply"),
        ("threads: 1\n---\nthreads: 2\n", "edge.yaml:2: not valid YAML: but found another document"),
        (BOMB, "edge.yaml: more than 100000 values, this is no configuration file"),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    assert complaint(tmp_path, text) == expected


def test_every_mistake_is_listed_in_the_order_of_the_file(tmp_path: Path) -> None:
    lines = complaint(tmp_path, "threads: x\ngate:\n  polcy: a\nspinning: 3\n").splitlines()
    assert [line.split(":")[1] for line in lines] == ["1", "3", "4"]


def test_a_missing_key_is_reported(tmp_path: Path) -> None:
    assert complaint(tmp_path, "", Required) == "edge.yaml:1: model: this key is required"


def test_a_broken_file_is_reported_with_the_line(tmp_path: Path) -> None:
    assert complaint(tmp_path, "threads: 1\ngate: [\n").startswith("edge.yaml:3: not valid YAML: ")


def test_another_encoding_is_refused(tmp_path: Path) -> None:
    assert complaint(tmp_path, "address: é\n".encode("latin-1")) == (
        "edge.yaml: byte 9 is not UTF-8; save the file as UTF-8"
    )


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such file"):
        load_yaml(tmp_path / "absent.yaml", Settings)


PYTHON: list[tuple[dict[str, Any], str]] = [
    ({"threads": "two"}, "threads: 'two' is not a whole number"),
    ({"thraeds": 2}, "thraeds: unknown key (did you mean 'threads'?)"),
    ({"gate": {"max_deviation": 2}}, "gate.max_deviation: 2: input should be less than or equal to 1"),
    ({"gate": 5}, "gate: 5 is not a table of keys"),
    ({"links": {"a": {"kind": "wier"}}}, "links.a.kind: 'wier' is not 'wire' or 'air'"),
    ({"links": {"a": {"kind": "air", "watts": "hot"}}}, "links.a.watts: 'hot' is not a number"),
    ({"threads": "x", "spinning": 1}, "threads: 'x' is not a whole number\nspinning: 1 is not true or false"),
]


@pytest.mark.parametrize(("values", "expected"), PYTHON, ids=[expected for _, expected in PYTHON])
def test_invalid_settings_in_python_are_refused_with_field_and_value(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(**values)
    assert caught.value.message == expected


def test_a_missing_required_setting_in_python_is_reported() -> None:
    with pytest.raises(ConfigError, match=r"^model: this key is required$"):
        Required()  # type: ignore[call-arg]  # that is the point


class Paths(FrozenModel):
    gate: Literal["auto"] | RelativePath | None = None


def test_a_path_is_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    assert load_yaml(write(tmp_path, "gate: gates/mine.onnx\n"), Paths).gate == tmp_path / "gates" / "mine.onnx"
    assert load_yaml(write(tmp_path, "gate: /mine.onnx\n"), Paths).gate == Path("/mine.onnx")
    assert load_yaml(write(tmp_path, "gate: auto\n"), Paths).gate == "auto"
    assert load_yaml(write(tmp_path, ""), Paths).gate is None
    assert Paths(gate=Path("mine.onnx")).gate == Path("mine.onnx"), "made in Python, relative to the working directory"
    assert complaint(tmp_path, "gate: ''\n", Paths).endswith(": no file is named; give a path")


@pytest.mark.parametrize("name", ["edge.yaml", "configs/edge.yaml", "configs/links/4g.yaml", "links/4g.yaml"])
def test_a_packaged_file_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert found_config(name) == packaged_path(name.removeprefix("configs/"))
    mine = tmp_path / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("threads: 7\n")
    assert found_config(name) == Path(name), "an existing file has precedence"
    assert load_yaml(name, Settings).threads == 7


@pytest.mark.parametrize("name", ["egde.yaml", "configs/../edge.yaml", "/edge.yaml", "configs", "", "."])
def test_an_unpackaged_name_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert found_config(name) == Path(name)
    with pytest.raises(ConfigError):
        load_yaml(name, Settings)


def test_an_absent_file_lists_the_packaged_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; packaged files: cloud\.yaml, edge\.yaml, links/"):
        load_yaml(tmp_path / "egde.yaml", Settings)


def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="/dev/zero: more than 1048576 bytes, this is no configuration file"):
        load_yaml("/dev/zero", Settings)


def test_the_environment_determines_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHAPERONE_HOME", str(tmp_path / "chosen"))
    assert pair_folder("tiny", "edge") == tmp_path / "chosen" / "models" / "tiny" / "edge"
    monkeypatch.delenv("CHAPERONE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert chaperone_home() == tmp_path / "chaperone"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert chaperone_home() == Path.home() / ".cache" / "chaperone"


HOMES = [
    ({"CHAPERONE_HOME": "/dev/null/x"}, "CHAPERONE_HOME: '/dev/null/x' cannot be used: /dev/null is not a folder"),
    ({"CHAPERONE_HOME": "models"}, "CHAPERONE_HOME: 'models' is relative; give the whole path, such as /"),
    ({"CHAPERONE_HOME": "~nobody_such/x"}, "CHAPERONE_HOME: '~nobody_such/x' names a user who is not known here"),
    (
        {"CHAPERONE_HOME": f"/{'x' * 300}"},
        "cannot be used: File name too long; set CHAPERONE_HOME to a folder of yours",
    ),
    (
        {"XDG_CACHE_HOME": "/dev/null"},
        "the user's cache folder: '/dev/null/chaperone' cannot be used: /dev/null is not",
    ),
    ({"HOME": ""}, "CHAPERONE_HOME: not set, and this user has no home folder; set it to a folder"),
]


@pytest.mark.parametrize(("variables", "words"), HOMES, ids=[words for _, words in HOMES])
def test_an_impossible_home_is_reported_with_its_setting(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], words: str
) -> None:
    for name in ("CHAPERONE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
            monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # as in a container with a number for a user
    with pytest.raises(ConfigError) as caught:
        pair_folder("tiny", "edge")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_relative_cache_folder_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHAPERONE_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert chaperone_home() == Path.home() / ".cache" / "chaperone"


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    folder = tmp_path / "some-pair" / "edge"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"0123456789")
    manifest = ModelManifest(
        pair="some-pair",
        role="edge",
        model="some-model",
        source={"source": "tiny"},
        recipe={},
        versions={},
        tokenizer_digest=f"sha256:{'0' * 64}",
        vocabulary_size=4,
        eos_token_ids=(3,),
        context_tokens=8,
        files={"model.onnx": ManifestFile(bytes=10, sha256=file_sha256(folder / "model.onnx"))},
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def test_a_complete_artefact_loads(artefact: Path) -> None:
    assert load_manifest(artefact, role="edge", verify=True).eos_token_ids == (3,)


def test_an_absent_artefact_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(
        ModelMissing,
        match=r"no edge model here; run `chaperone models pull --pair tiny --cloud HOST:PORT`$",
    ):
        load_manifest(tmp_path / "tiny" / "edge", role="edge")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"01234", "5 bytes, the manifest says 10"),
        (b"0123456780", "its SHA-256 is not the manifest's"),
        (None, "it is missing"),
    ],
)
def test_a_damaged_file_is_named_with_the_command(artefact: Path, content: bytes | None, problem: str) -> None:
    path = artefact / "model.onnx"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(
        ModelCorrupt, match=f"model.onnx: {problem}; run `chaperone models pull --pair some-pair --cloud HOST:PORT`$"
    ):
        load_manifest(artefact, role="edge")


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx"])
def test_an_unreadable_file_is_not_corrupt(artefact: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("CHAPERONE_HOME", str(artefact))
    (artefact / name).unlink()
    (artefact / name).symlink_to(name)  # a circle of links, because root may read everything else
    with pytest.raises(ModelError, match=f"{name}: cannot be read: .*; CHAPERONE_HOME is {artefact}$") as caught:
        load_manifest(artefact, role="edge")
    assert not isinstance(caught.value, ModelCorrupt)


def test_the_digest_identifies_source_and_recipe(artefact: Path) -> None:
    manifest = load_manifest(artefact, role="edge")
    expected = json.dumps(["edge", "some-model", {"source": "tiny"}, {}, manifest.tokenizer_digest], sort_keys=True)
    assert manifest.digest == f"sha256:{hashlib.sha256(expected.encode()).hexdigest()}", "gates are bound to the digest"
    contents = (None, f"sha256:{'1' * 64}", f"sha256:{'2' * 64}")
    copies = [manifest.model_copy(update={"content": content}) for content in contents]
    assert len({copy.digest for copy in copies}) == 3
    moved = copies[1].model_copy(update={"source": {"source": "pretrained", "name": "elsewhere"}})
    assert moved.digest == copies[1].digest


def test_checksums_of_large_files_are_left_to_verify(artefact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chaperone_common.artefacts.manifest.CHECKSUM_ALWAYS_BELOW_BYTES", 4)
    (artefact / "model.onnx").write_bytes(b"0123456780")
    load_manifest(artefact, role="edge")
    with pytest.raises(ModelCorrupt, match="SHA-256"):
        load_manifest(artefact, role="edge", verify=True)


def test_a_broken_manifest_is_corrupt(artefact: Path) -> None:
    manifest = artefact / "manifest.json"
    whole = manifest.read_text()
    for broken in (whole[:40], "[]", json.dumps(json.loads(whole) | {"format": 2}), whole.replace("edge", "cloud")):
        manifest.write_text(broken)
        with pytest.raises(ModelCorrupt, match=r"manifest\.json"):
            load_manifest(artefact, role="edge")


def test_the_digest_of_a_vocabulary_covers_bytes_and_special_ids() -> None:
    table = {0: b"a", 1: b"bc", 2: b"<end>"}
    digest = vocabulary_digest(table, [2])
    records = [(0, b"\x00a"), (1, b"\x00bc"), (2, b"\x01<end>")]
    expected = b"".join(struct.pack("<QQ", token_id, len(content) - 1) + content for token_id, content in records)
    assert digest == f"sha256:{hashlib.sha256(expected).hexdigest()}"
    assert digest == vocabulary_digest(dict(reversed(table.items())), {2})
    others = [({0: b"ab", 1: b"c", 2: b"<end>"}, [2]), (table, []), ({0: b"a", 1: b"bc", 3: b"<end>"}, [3])]
    assert digest not in {vocabulary_digest(other, special) for other, special in others}
    with pytest.raises(ValueError, match="not in the vocabulary"):
        vocabulary_digest(table, [7])
