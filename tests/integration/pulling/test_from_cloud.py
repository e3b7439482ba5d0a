"""A device gets its model from its own cloud: over real gRPC, whole, and within the limits of the cloud."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from chaperone_common.artefacts.manifest import ManifestFile, load_manifest
from chaperone_common.errors import CloudUnavailable, ModelCorrupt, ModelMissing, PeerMismatch
from cloud_supervisor.assembly import build_cloud
from cloud_supervisor.server import Server
from edge_client import CloudSettings, EdgeConfig, pull_model
from edge_client.artefacts.from_cloud import CloudSource
from edge_client.artefacts.pull import PullProgress, pull
from tests.support.fakes.target import fake_target
from tests.support.links.cutting import cutting
from tests.support.pulling.clouds import TINY, at, device_home, edge, manifest_of, play, same_files
from tests.support.waiting import until


class Recorded:
    """A source that notes what is asked of it."""

    def __init__(self, source: CloudSource) -> None:
        self._source = source
        self.asked: list[tuple[str, int]] = []
        self.place = source.place
        self.manifest = source.manifest
        self.close = source.close

    def read(self, name: str, expected: ManifestFile, offset: int) -> AsyncGenerator[bytes, None]:
        self.asked.append((name, offset))
        return self._source.read(name, expected, offset)


def test_a_device_has_the_whole_model_afterwards(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[PullProgress] = []

    async def scenario(server: Server, address: str) -> None:
        pulled = await pull_model(at(address), progress=seen.append)
        assert pulled.folder == edge(device_home(home))
        assert same_files(pulled.folder, edge(home))
        assert pulled.manifest == load_manifest(pulled.folder, role="edge", verify=True)
        assert pulled.manifest_sha256 == hashlib.sha256((pulled.folder / "manifest.json").read_bytes()).hexdigest()
        assert pulled.fetched_bytes == pulled.total_bytes == seen[-1].done_bytes == seen[-1].total_bytes
        assert [path.name for path in (device_home(home) / "models").iterdir() if path.is_dir()] == ["tiny"]
        again = await pull_model(at(address), sha256=pulled.manifest_sha256)
        assert again.fetched_bytes == 0

    play(home, monkeypatch, scenario)
    assert [progress.done_bytes for progress in seen] == sorted(progress.done_bytes for progress in seen)


def test_a_cut_connection_is_continued_where_it_broke(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server, address: str) -> None:
        async with cutting(address, after_bytes=300_000, cuts=2) as forwarder:
            source = Recorded(CloudSource("tiny", CloudSettings(address=forwarder.address)))
            said: list[str] = []
            try:
                pulled = await pull("tiny", source, say=said.append)
            finally:
                await source.close()
        assert forwarder.cuts_left == 0
        assert same_files(pulled.folder, edge(home))
        assert pulled.fetched_bytes == pulled.total_bytes, "no byte is fetched twice"
        offsets = [offset for name, offset in source.asked if name == "model.onnx.data"]
        assert offsets[0] == 0
        assert offsets == sorted(offsets)
        assert offsets[-1] > 0
        assert any("trying again in" in line for line in said)

    play(home, monkeypatch, scenario)


def test_a_pull_that_was_given_up_is_continued_by_the_next_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server, address: str) -> None:
        async with cutting(address, after_bytes=300_000, cuts=1) as forwarder:
            source = CloudSource("tiny", CloudSettings(address=forwarder.address))
            with pytest.raises(CloudUnavailable, match="what has arrived is kept, run the same command again to go on"):
                await pull("tiny", source, patience_s=0.0)
            await source.close()
        final = edge(device_home(home))
        assert not final.exists(), "a model that is not whole is never used"
        pulled = await pull_model(at(address))
        assert 0 < pulled.fetched_bytes < pulled.total_bytes
        assert same_files(final, edge(home))

    play(home, monkeypatch, scenario)


def test_a_file_with_another_content_than_its_checksum_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = edge(home) / "model.onnx.data"
    content = bytearray(damaged.read_bytes())
    content[1000] ^= 1
    damaged.write_bytes(content)

    async def scenario(server: Server, address: str) -> None:
        with pytest.raises(ModelCorrupt, match="model.onnx.data: its SHA-256 is not the manifest's; it was deleted"):
            await pull_model(at(address))
        models = device_home(home) / "models"
        assert not (models / "tiny").exists()
        parts = [path.name for path in (models / ".pulling-tiny").iterdir()]
        assert manifest_of(edge(home)).files["model.onnx.data"].sha256 not in "".join(parts)
        content[1000] ^= 1
        damaged.write_bytes(content)
        await pull_model(at(address))

    play(home, monkeypatch, scenario)


def test_another_manifest_than_the_pinned_one_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server, address: str) -> None:
        with pytest.raises(ModelCorrupt, match=f"its SHA-256 is [0-9a-f]{{64}}, not {'0' * 64}; correct --sha256"):
            await pull_model(at(address), sha256="0" * 64)

    play(home, monkeypatch, scenario)


@pytest.mark.parametrize(
    ("damage", "logged"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "No such file"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "Field required"),
        (lambda folder: (folder / "tokenizer.json").write_bytes(b"short"), "5 bytes, the manifest says"),
        (lambda folder: link(folder / "tokenizer.json"), "symbolic link"),
    ],
    ids=["no model", "a broken manifest", "another size", "a link"],
)
def test_a_cloud_without_the_device_model_says_so_and_shows_no_path(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], object],
    logged: str,
) -> None:
    damage(edge(home))

    async def scenario(server: Server, address: str) -> None:
        with pytest.raises(ModelMissing) as caught:
            await pull_model(at(address))
        assert "this cloud has no whole device model of pair 'tiny'; ask its operator, or pull" in caught.value.message
        assert str(home) not in caught.value.message
        assert "chaperone-cloud" not in caught.value.message

    play(home, monkeypatch, scenario)
    (record,) = [record for record in caplog.records if "devices cannot get the model" in record.message]
    assert logged in record.message
    assert "chaperone-cloud models pull --pair tiny" in record.message


def link(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def test_a_cloud_serves_its_own_pair_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server, address: str) -> None:
        with pytest.raises(PeerMismatch, match="pair: this cloud serves 'tiny', not 'default'; give --pair tiny"):
            await pull_model(EdgeConfig(cloud=CloudSettings(address=address)))

    play(home, monkeypatch, scenario)


def test_a_cloud_that_is_loading_its_model_is_waited_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        monkeypatch.setenv("CHAPERONE_HOME", str(home))
        config = TINY.model_copy(update={"listen": "127.0.0.1:0"})
        pair = home / "models" / "tiny"
        manifest = load_manifest(pair / "cloud", role="cloud")
        server, cloud = Server(config), build_cloud(config, fake_target(pair), manifest)
        address = await server.start()
        monkeypatch.setenv("CHAPERONE_HOME", str(device_home(home)))
        said: list[str] = []
        pulling = asyncio.create_task(pull_model(at(address, connect_timeout_ms=100.0), say=said.append))
        await until(lambda: bool(said), "the reason why the pull waits")
        assert "the cloud is loading its model; try again; it was not ready within 100 ms, raise cloud.co" in said[0]
        assert "; trying again in" in said[0]
        await server.host(cloud)
        assert same_files((await pulling).folder, edge(home))
        await server.stop(0)

    asyncio.run(run())
