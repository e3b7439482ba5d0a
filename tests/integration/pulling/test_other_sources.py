"""A model from a folder or a web server, and a device that takes only what its manifest says."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.artefacts.manifest import ManifestFile
from chaperone_common.errors import ConfigError, ModelCorrupt, ModelError, ModelMissing
from edge_client import EdgeConfig, PulledModel, pull_model
from edge_client.artefacts.from_folder import FolderSource
from edge_client.artefacts.from_url import UrlSource
from edge_client.artefacts.pull import pull
from tests.support.pulling.clouds import device_home, edge, manifest_of, rewrite_manifest, same_files
from tests.support.pulling.web import web_server

CONFIG = EdgeConfig(pair="tiny")


@pytest.fixture(autouse=True)
def _empty_device(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAPERONE_HOME", str(device_home(home)))


def pulled(source: Path | str, **options: Any) -> PulledModel:
    return asyncio.run(pull_model(CONFIG, source=source, **options))


def test_a_folder_is_copied_whole(home: Path) -> None:
    model = pulled(edge(home))
    assert same_files(model.folder, edge(home))
    assert pulled(str(edge(home))).fetched_bytes == 0


def test_only_changed_files_are_fetched_again(home: Path) -> None:
    folder = pulled(edge(home)).folder
    (folder / "tokenizer.json").write_bytes(b"damaged")
    again = pulled(edge(home))
    assert again.fetched_bytes == again.manifest.files["tokenizer.json"].bytes
    assert same_files(folder, edge(home))


def test_a_newer_model_replaces_the_old_one(home: Path) -> None:
    old = pulled(edge(home)).manifest
    rewrite_manifest(edge(home), model="newer")
    new = pulled(edge(home))
    assert (old.model, new.manifest.model) == ("tiny-draft", "newer")
    assert new.fetched_bytes == 0, "its files were here"
    assert manifest_of(new.folder).model == "newer"


def test_a_web_server_is_a_source(home: Path) -> None:
    with web_server(edge(home)) as server:
        model = pulled(f"{server.url}/models/tiny/edge/")
    assert same_files(model.folder, edge(home))
    assert ("/models/tiny/edge/manifest.json", "") in server.asked


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_is_continued(home: Path, ranges: bool) -> None:
    with web_server(edge(home), ranges=ranges, cut_after=300_000) as server:
        model = pulled(server.url)
    assert same_files(model.folder, edge(home))
    assert model.fetched_bytes == model.total_bytes
    assert [asked for path, asked in server.asked if path == "/model.onnx.data"] == ["", "bytes=300000-"]


def test_a_missing_file_is_named(home: Path) -> None:
    (edge(home) / "tokenizer.json").unlink()
    with web_server(edge(home)) as server, pytest.raises(ModelMissing) as caught:
        pulled(server.url)
    assert f"{server.url}/tokenizer.json: there is no such file" in caught.value.message
    with pytest.raises(ModelMissing, match="tokenizer.json: there is no such file; give the folder `edge` of a pulled"):
        pulled(edge(home))
    with pytest.raises(ModelMissing, match="manifest.json: there is no such file"):
        pulled(home)


def test_a_server_that_is_gone_is_not_waited_for(home: Path) -> None:
    with web_server(edge(home)) as server:
        url = server.url
    with pytest.raises(ModelError, match="manifest.json: cannot be read: .*refused"):
        pulled(url)


def test_a_redirect_is_followed_and_another_scheme_is_not(home: Path) -> None:
    with web_server(edge(home)) as storage, web_server(edge(home), redirect=storage.url) as server:
        assert same_files(pulled(server.url).folder, edge(home))
    shutil.rmtree(device_home(home))
    with (
        web_server(edge(home), redirect="ftp://127.0.0.1") as server,
        pytest.raises(ModelError, match="redirects to another scheme"),
    ):
        pulled(server.url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://models.example/edge", "plain HTTP, and everybody on the way could send another model; use https"),
        ("ftp://models.example/edge", "is no address of HTTP or HTTPS"),
        ("file:///etc", "is no address of HTTP or HTTPS"),
        ("https://me:secret@models.example/edge", "the URL holds a name or password"),
        ("https://models.example/edge?token=secret", "the URL has a query or fragment"),
        ("https://models.example:99999/edge", "it is no URL"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_at_once(url: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pulled(url)
    assert words in caught.value.message
    assert "secret" not in caught.value.message


def test_plain_http_is_allowed_to_a_known_manifest() -> None:
    assert UrlSource("http://models.example/edge", insecure=True).place == "http://models.example/edge"


# --- Manifests that ask for too much ---------------------------------------------------------------------------------


def with_file(name: str, size: int = 3) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        extra = ManifestFile(bytes=size, sha256=hashlib.sha256(b"abc").hexdigest())
        rewrite_manifest(folder, files={**manifest_of(folder).files, name: extra})

    return change


def with_many_files(folder: Path) -> None:
    file = ManifestFile(bytes=3, sha256="0" * 64)
    rewrite_manifest(folder, files={f"file-{number}": file for number in range(65)})


def with_a_link(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "elsewhere")
    (folder / "tokenizer.json").symlink_to(folder / "elsewhere")


def with_a_pipe(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_file("../../escaped"), "files: '../../escaped' is no plain name of a file"),
        (with_file("/etc/escaped"), "files: '/etc/escaped' is no plain name of a file"),
        (with_file(".."), "files: '..' is no plain name of a file"),
        (with_file("manifest.json"), "files: 'manifest.json' is no plain name of a file"),
        (with_file("extra", 17 << 30), "the model has 18254.4 MB, and at most 17179.9 MB are taken; raise --max-gib"),
        (with_many_files, "files: 65, at most 64 are taken"),
        (with_a_link, "tokenizer.json: it is a symbolic link; put the file itself there"),
        (with_a_pipe, "tokenizer.json: it is not a regular file"),
        (lambda folder: rewrite_manifest(folder, role="cloud"), "role: 'cloud', but the edge model is wanted"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff"), "manifest.json: cannot be read"),
        (lambda folder: (folder / "manifest.json").write_bytes(b" " * (2 << 20)), "more than 1048576 bytes"),
        (lambda folder: (folder / "tokenizer.json").write_bytes(b"short"), "it ended 21360 bytes early"),
    ],
)
def test_a_model_that_this_device_cannot_trust_is_refused(
    home: Path, change: Callable[[Path], object], words: str
) -> None:
    change(edge(home))
    with pytest.raises(ModelError) as caught:
        asyncio.run(pull("tiny", FolderSource(edge(home)), patience_s=0.0))
    assert words in caught.value.message
    assert not edge(device_home(home)).exists()
    assert not (home.parent / "escaped").exists()


def test_a_file_that_is_longer_than_its_manifest_says_is_refused(home: Path) -> None:
    with (edge(home) / "tokenizer.json").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ModelCorrupt, match="tokenizer.json: it has more than 21365 bytes, which the manifest says"):
        pulled(edge(home))


def test_a_disk_that_is_too_small_is_found_before_the_download(home: Path) -> None:
    with_file("extra", 1 << 60)(edge(home))
    with pytest.raises(ModelError, match="more are needed, and .* are free; make room, or set CHAPERONE_HOME"):
        pulled(edge(home), max_bytes=1 << 62)


def test_the_pair_of_the_cloud_stays_next_to_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAPERONE_HOME", str(home))
    copy = shutil.copytree(edge(home), home.parent / "copy")
    rewrite_manifest(copy, model="newer")
    large = (home / "models" / "tiny" / "cloud" / "manifest.json").read_bytes()
    assert pulled(copy).manifest.model == "newer"
    assert (home / "models" / "tiny" / "cloud" / "manifest.json").read_bytes() == large


def test_a_link_in_place_of_the_model_is_replaced_and_not_followed(home: Path) -> None:
    shared = shutil.copytree(edge(home), home.parent / "shared")
    rewrite_manifest(shared, model="older")
    edge(device_home(home)).parent.mkdir(parents=True)
    edge(device_home(home)).symlink_to(shared)
    assert pulled(edge(home)).manifest.model == "tiny-draft"
    assert not edge(device_home(home)).is_symlink()
    assert manifest_of(shared).model == "older"
