"""The clients of a journal: one at a time, closed and opened again, without an event loop, and as a command."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import CloudUnavailable, ConfigError, InternalError, InvalidRequest
from chaperone_common.frames import API_VERSION, Capabilities, ClientFrame, Failure, Open, ServerFrame
from edge_client import EdgeClient, JournalState, SyncEdgeClient, Totals
from edge_client.apps.cli.main import main
from edge_client.ports import Metadata
from tests.integration.texts.test_journal import PROMPT, alone, config, state_of
from tests.support.fakes.link import FakeLink
from tests.support.fakes.target import fake_target
from tests.support.processes.clients import NOBODY
from tests.support.processes.servers import serving, serving_in_thread


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_without_a_setting_there_is_no_journal(tiny_pair: Path, tmp_path: Path) -> None:
    async def run() -> None:
        async with EdgeClient(config(NOBODY, None)) as client:
            await client.generate(PROMPT, mode="gated", max_new_tokens=4)
            assert client.journal is None
            with pytest.raises(InvalidRequest, match="gate.journal_file: it is null"):
                await client.audit_journal()

    asyncio.run(run())
    assert [*tmp_path.iterdir()] == []


def test_two_clients_cannot_share_a_journal(tiny_pair: Path, file: Path) -> None:
    async def run() -> None:
        async with EdgeClient(config(NOBODY, file)):
            with pytest.raises(ConfigError, match="in use by another client"):
                EdgeClient(config(NOBODY, file))
        async with EdgeClient(config(NOBODY, file)):
            pass

    asyncio.run(run())


def test_a_closed_client_opens_its_journal_again(tiny_pair: Path, file: Path) -> None:
    client = EdgeClient(config(NOBODY, file))

    async def write() -> JournalState:
        try:
            await client.generate(PROMPT, mode="gated", max_new_tokens=4)
        finally:
            await client.aclose()
        return state_of(client)

    assert asyncio.run(write()) == JournalState(waiting=1)
    assert asyncio.run(write()) == JournalState(waiting=2), "on another event loop"


def test_the_sync_client_has_the_journal_too(tiny_pair: Path, file: Path) -> None:
    with SyncEdgeClient(config(NOBODY, file)) as client:
        client.generate(PROMPT, mode="gated", max_new_tokens=4)
        assert client.journal == JournalState(waiting=1)
        with pytest.raises(CloudUnavailable):
            client.audit_journal()


def test_only_budgets_learn(tiny_pair: Path, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Other policies have no totals; the journal still counts."""

    async def run() -> None:
        async with serving(fake_target(tiny_pair), tiny_pair) as (_, address):
            async with EdgeClient(config(NOBODY, file, policy="never")) as client:
                await client.generate(PROMPT, mode="gated", max_new_tokens=8)
            async with EdgeClient(config(address, file, policy="never")) as client:
                assert (await client.audit_journal()).audited == 1
                assert client.totals() == Totals()

    with caplog.at_level(logging.DEBUG, "edge_client"):
        asyncio.run(run())
    assert PROMPT not in caplog.text


class FailingCloud:
    """A cloud that fails on each text."""

    connected = True

    def __init__(self) -> None:
        self.opened: list[Open] = []

    async def capabilities(self, timeout_ms: float) -> Capabilities:
        digest = load_manifest(pair_folder("tiny", "edge"), role="edge").tokenizer_digest
        return Capabilities(API_VERSION, "large", digest, 512, 4096, 256, "sha256:large")

    def link(self, metadata: Metadata = ()) -> FakeLink:
        def fail(frame: ClientFrame) -> list[ServerFrame]:
            if not isinstance(frame, Open):
                return []
            self.opened.append(frame)
            return [Failure("INTERNAL", "a bug")]

        return FakeLink(fail)

    async def close(self) -> None:
        pass


def test_a_text_on_which_the_cloud_fails_again_and_again_is_given_up(tiny_pair: Path, file: Path) -> None:
    cloud = FailingCloud()

    async def audit() -> list[JournalState]:
        states = []
        async with EdgeClient(config(NOBODY, file), cloud=cloud) as client:
            for _ in range(3):
                with pytest.raises(InternalError, match="a bug"):
                    await client.audit_journal()
                states.append(state_of(client))
        return states

    asyncio.run(alone(file, 2))
    states = asyncio.run(audit())
    assert states == [JournalState(waiting=2), JournalState(waiting=2), JournalState(waiting=1, dropped=1)]
    assert len({frame.prompt_token_ids for frame in cloud.opened}) == 1
    assert len({frame.session_id for frame in cloud.opened}) == len(cloud.opened) == 4


def test_the_command_audits_the_journal(tiny_pair: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(alone(file, 2))
    settings = file.with_name("edge.yaml")
    settings.write_text("gate:\n  journal_file: journal.jsonl\n", encoding="utf-8")
    with serving_in_thread(fake_target(tiny_pair), tiny_pair) as (_, address):
        assert main(["audit", "--pair", "tiny", "--config", str(settings), "--cloud", address]) == 0
    assert capsys.readouterr().out.startswith("2 texts audited, ")
    assert file.read_bytes() == b""


def test_the_command_needs_a_journal(tiny_pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--pair", "tiny"]) == 2
    assert "gate.journal_file: it is null" in capsys.readouterr().err
