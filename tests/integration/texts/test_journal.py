"""The journal over real gRPC: texts that lost their cloud are audited when it is back, once each."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import Cancelled, CloudUnavailable
from chaperone_common.session import Committed, Failed, Finished
from chaperone_common.types import Origin
from cloud_supervisor.model.torch_model import TorchModel
from cloud_supervisor.server import Server
from edge_client import EdgeClient, EdgeConfig, JournalState, Totals
from edge_client.config import CloudSettings, DeviceSettings, GateSettings
from edge_client.events import Event
from edge_client.journal.entry import decode
from tests.support.fakes.target import Brake, fake_target
from tests.support.links.forwarder import Forwarder, forwarding
from tests.support.models import oracle
from tests.support.processes.clients import NOBODY, ending_of
from tests.support.processes.servers import serving
from tests.support.waiting import PATIENCE_S, until

PROMPT = "the list of a number is"
NEW_TOKENS = 60
SAMPLING: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "seed": 4}
TRUSTING = {"catch": 0.0, "max_deviation": 1.0}  # the gate asks about the end of the text alone


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def config(address: str, file: Path | None, *, connect_ms: float = 10_000.0, **gate: Any) -> EdgeConfig:
    connect_ms = 300.0 if address == NOBODY else connect_ms
    return EdgeConfig(
        pair="tiny",
        cloud=CloudSettings(address=address, reconnect_timeout_ms=0.0, connect_timeout_ms=connect_ms),
        device=DeviceSettings(threads=1, allow_spinning=False),
        gate=GateSettings(journal_file=file, **{**TRUSTING, **gate}),
    )


def hasty(address: str, file: Path) -> EdgeConfig:
    """Return settings with which an audit may take two seconds."""
    settings = config(address, file)
    cloud = {"verification_deadline_ms": 2_000.0, "open_deadline_ms": 2_000.0}
    return settings.model_copy(update={"cloud": settings.cloud.model_copy(update=cloud)})


@dataclass
class Oracle:
    """The choices of the large model, by the independent oracle."""

    model: Any
    vocabulary_size: int
    prompt: Sequence[int] = field(default_factory=tuple)

    def deviations(self, events: Sequence[Event], *origins: Origin) -> tuple[int, int]:
        """Return how many committed tokens have one of these origins, and how many of them deviate."""
        text = [event for event in events if isinstance(event, Committed)]
        token_ids = [event.token_id for event in text]
        own = {"top_k": 0, "min_p": 0.0} | SAMPLING
        choices = oracle.choices(self.model, self.prompt, token_ids, vocabulary_size=self.vocabulary_size, **own)
        counted = [
            event.token_id != choice for event, choice in zip(text, choices, strict=True) if event.origin in origins
        ]
        return len(counted), sum(counted)


@pytest.fixture(scope="module")
def large(tiny_pair: Path) -> Oracle:
    manifest = load_manifest(tiny_pair / "cloud", role="cloud")
    return Oracle(oracle.load(tiny_pair / "cloud"), manifest.vocabulary_size)


async def written(
    client: EdgeClient, oracle: Oracle, act: Callable[[], object] | None = None, at: int = 20
) -> list[Event]:
    """Return the events of one text; `act` runs when `at` of its tokens are final."""
    oracle.prompt = client.prepare(PROMPT).token_ids
    events: list[Event] = []
    count = 0
    async for event in client.stream(PROMPT, mode="gated", max_new_tokens=NEW_TOKENS, **SAMPLING):
        events.append(event)
        count += isinstance(event, Committed)
        if act is not None and isinstance(event, Committed) and count == at:
            act()
    assert isinstance(ending_of(events), Finished)
    return events


def state_of(client: EdgeClient) -> JournalState:
    assert client.journal is not None
    return client.journal


@asynccontextmanager
async def through_forwarder(pair: Path, target: Any) -> AsyncIterator[tuple[Server, Forwarder]]:
    async with serving(target, pair) as (server, address), forwarding(address) as forwarder:
        yield server, forwarder


def vanish(forwarder: Forwarder) -> None:
    """Break the connection, and refuse new ones."""
    forwarder.upstream = None
    forwarder.reset()


@pytest.mark.parametrize("same_client", [True, False])
def test_a_text_that_lost_its_cloud_is_audited_at_the_next_connect(
    tiny_pair: Path, target: TorchModel, large: Oracle, file: Path, same_client: bool
) -> None:
    """The totals are those of an audit that nothing disturbs."""

    async def run() -> tuple[Totals, JournalState, list[Event], list[Event]]:
        async with through_forwarder(tiny_pair, target) as (server, forwarder):
            settings = config(forwarder.address, file)
            client = EdgeClient(settings)
            upstream = forwarder.upstream
            lonely = await written(client, large, partial(vanish, forwarder))
            assert state_of(client) == JournalState(waiting=1)
            assert client.totals().audited == 0
            if not same_client:
                await client.aclose()
                assert state_of(client) == JournalState(waiting=1)
                client = EdgeClient(settings)
                assert state_of(client) == JournalState(waiting=1)
            forwarder.upstream = upstream
            next_text = await written(client, large)
            await until(lambda: state_of(client).audited == 1, "the audit of the journal")
            skipped = sum(isinstance(event, Committed) and event.origin is Origin.DRAFT for event in next_text)
            audited = skipped + (large.deviations(lonely, Origin.DRAFT)[0])
            await until(lambda: client.totals().audited == audited, "the closing audit")
            await client.aclose()
            await until(lambda: server.cloud.supervisor.sessions == 0, "the sessions ended")
            assert server.cloud.supervisor.counters.refused == 0
            return client.totals(), state_of(client), lonely, next_text

    totals, state, lonely, next_text = asyncio.run(run())
    before, deviating = large.deviations(lonely, Origin.DRAFT)
    after, more = large.deviations(next_text, Origin.DRAFT)
    unverified, unverified_deviating = large.deviations(lonely, Origin.UNVERIFIED)
    assert before >= 20
    assert unverified > 0
    assert deviating + unverified_deviating > 0
    assert (totals.audited, totals.deviations) == (before + after, deviating + more), "the promises cover these alone"
    assert state == JournalState(
        audited=1, audited_tokens=before + unverified, deviations=deviating + unverified_deviating
    )
    assert file.read_bytes() == b""


def test_an_undisturbed_client_has_the_same_totals(
    tiny_pair: Path, target: TorchModel, large: Oracle, file: Path
) -> None:
    """The closing audit is lost in one client, and not in the other."""

    async def run(*, disturbed: bool) -> Totals:
        async with (
            through_forwarder(tiny_pair, target) as (_, forwarder),
            EdgeClient(config(forwarder.address, file)) as client,
        ):
            upstream = forwarder.upstream
            # The connection breaks after the last token, so that only the closing audit is lost.
            await written(client, large, partial(vanish, forwarder) if disturbed else None, at=NEW_TOKENS)
            forwarder.upstream = upstream
            if disturbed:
                await until(lambda: state_of(client).waiting == 1, "the text is in the journal")
                assert await client.audit_journal() == state_of(client)
            await until(lambda: client.totals().audited > 0, "the audit")
            assert state_of(client).audited == disturbed
            return client.totals()

    undisturbed, disturbed = asyncio.run(run(disturbed=False)), asyncio.run(run(disturbed=True))
    assert disturbed == undisturbed
    assert undisturbed.audited > 0


def test_a_client_that_is_closed_before_the_audit_keeps_the_text(tiny_pair: Path, file: Path) -> None:
    brake = Brake()

    async def leave() -> None:
        async with serving(fake_target(tiny_pair, brake), tiny_pair) as (_, address):
            try:
                async with EdgeClient(hasty(address, file)) as client:
                    async with aclosing(client.stream(PROMPT, mode="gated", max_new_tokens=NEW_TOKENS)) as events:
                        async for event in events:
                            if isinstance(event, Committed) and event.position > 30:
                                break
                    await until(brake.reached.is_set, "the cloud audits")
            finally:
                brake.let_go.set()

    async def come_back() -> None:
        async with (
            serving(fake_target(tiny_pair), tiny_pair) as (_, address),
            EdgeClient(config(address, file)) as client,
        ):
            state = await client.audit_journal()
            assert (state.waiting, state.audited, state.dropped) == (0, 1, 0)
            assert client.totals().audited == state.audited_tokens > 0

    asyncio.run(leave())
    (line,) = file.read_bytes().splitlines(keepends=True)
    assert decode(line)
    asyncio.run(come_back())


def test_closing_ends_the_audit_of_a_journal_at_once(tiny_pair: Path, file: Path) -> None:
    brake = Brake()

    async def run() -> None:
        async with EdgeClient(config(NOBODY, file)) as client:
            await client.generate(PROMPT, mode="gated", max_new_tokens=20)
        async with serving(fake_target(tiny_pair, brake), tiny_pair) as (server, address):
            try:
                client = EdgeClient(config(address, file))
                auditing = asyncio.create_task(client.audit_journal())
                await until(brake.reached.is_set, "the cloud reads the text")
                closing = asyncio.create_task(client.aclose())
                with pytest.raises(Cancelled, match="journal: the client was closed"):
                    await asyncio.wait_for(auditing, PATIENCE_S)
                await asyncio.wait_for(closing, PATIENCE_S)
                assert state_of(client) == JournalState(waiting=1)
            finally:
                brake.let_go.set()
            await until(lambda: server.cloud.supervisor.sessions == 0, "the session ended")

    asyncio.run(run())


def test_a_background_audit_waits_for_no_one_and_nobody_waits_for_it(tiny_pair: Path, file: Path) -> None:
    """The cloud hangs in the audit. The next text is written in that time, and closing takes no time."""
    brake = Brake(lambda request: request.num_choices > 10)  # no verification is as long

    async def run() -> None:
        async with EdgeClient(config(NOBODY, file)) as client:
            await client.generate(PROMPT, mode="gated", max_new_tokens=20)
        async with serving(fake_target(tiny_pair, brake), tiny_pair) as (server, address):
            try:
                client = EdgeClient(config(address, file))
                await client.generate(PROMPT, mode="exact", max_new_tokens=4)
                await until(brake.reached.is_set, "the audit of the journal")
                edge = await client.generate(PROMPT, mode="edge", max_new_tokens=4)
                assert len(edge.token_ids) > 0
                await asyncio.wait_for(client.aclose(), PATIENCE_S)
                assert state_of(client) == JournalState(waiting=1)
            finally:
                brake.let_go.set()
            await until(lambda: server.cloud.supervisor.sessions == 0, "the session ended")

    asyncio.run(run())


def test_an_audit_that_is_lost_is_made_again_and_counted_once(
    tiny_pair: Path, target: TorchModel, large: Oracle, file: Path
) -> None:
    async def run() -> tuple[Totals, list[Event]]:
        async with (
            through_forwarder(tiny_pair, target) as (server, forwarder),
            EdgeClient(config(forwarder.address, file, connect_ms=4_000.0)) as client,
        ):
            upstream = forwarder.upstream
            events = await written(client, large, partial(vanish, forwarder))
            with pytest.raises(CloudUnavailable):
                await client.audit_journal()
            forwarder.upstream = upstream
            both = await asyncio.gather(client.audit_journal(), client.audit_journal())
            assert both[0].audited == both[1].audited == 1
            assert await client.audit_journal() == both[1], "nothing is left"
            assert server.cloud.supervisor.counters.streams == 2, "one of the text, and one of its audit"
            return client.totals(), events

    totals, events = asyncio.run(run())
    assert (totals.audited, totals.deviations) == large.deviations(events, Origin.DRAFT)


async def alone(file: Path, texts: int) -> None:
    """Write texts without a cloud."""
    async with EdgeClient(config(NOBODY, file)) as client:
        for seed in range(texts):
            await client.generate(PROMPT, mode="gated", max_new_tokens=8, temperature=0.5, seed=seed)
        assert state_of(client).waiting == texts


async def audited(pair: Path, file: Path) -> JournalState:
    """Have all texts of a journal audited."""
    async with serving(fake_target(pair), pair) as (_, address), EdgeClient(config(address, file)) as client:
        return await client.audit_journal()


def test_texts_of_another_model_or_tokenizer_are_dropped(
    tiny_pair: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.run(alone(file, 3))
    first, second, third = file.read_text().splitlines()
    digest = load_manifest(tiny_pair / "edge", role="edge").tokenizer_digest
    assert '"model_digest":""' in first, "no cloud was there to name its model"
    first = first.replace('"model_digest":""', '"model_digest":"sha256:other"')
    second = second.replace(digest, "sha256:other")
    file.write_text(f"{first}\n{second}\n{third}\n")
    state = asyncio.run(audited(tiny_pair, file))
    assert (state.waiting, state.audited, state.dropped) == (0, 1, 2)
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("edge_client.journal")]
    assert messages == [
        "gate.journal_file: a text is not audited: another large model began it",
        "gate.journal_file: a text is not audited: it was written with another tokenizer",
    ]
    assert PROMPT not in caplog.text


def test_a_text_that_the_cloud_refuses_is_dropped_and_the_next_one_audited(
    tiny_pair: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.run(alone(file, 2))
    first, second = file.read_text().splitlines()
    file.write_text(re.sub(r'"prompt_token_ids":\[\d+', '"prompt_token_ids":[4294967295', first) + f"\n{second}\n")
    state = asyncio.run(audited(tiny_pair, file))
    assert (state.waiting, state.audited, state.dropped) == (0, 1, 1)
    assert "gate.journal_file: a text is not audited: the cloud refuses it with InvalidRequest" in caplog.text


@pytest.mark.parametrize("mode", ["exact", "edge"])
def test_only_gated_has_texts_to_audit(tiny_pair: Path, file: Path, mode: str) -> None:
    async def run() -> JournalState:
        settings = config(NOBODY, file)
        cloud = settings.cloud.model_copy(update={"on_loss": "continue"})
        async with EdgeClient(settings.model_copy(update={"cloud": cloud})) as client:
            await client.generate(PROMPT, mode=mode, max_new_tokens=4)
            return state_of(client)

    assert asyncio.run(run()) == JournalState()
    assert file.read_bytes() == b""


def test_a_generation_that_fails_leaves_its_unread_tokens_to_the_journal(
    tiny_pair: Path, target: TorchModel, file: Path
) -> None:
    async def run() -> None:
        async with through_forwarder(tiny_pair, target) as (_, forwarder):
            settings = config(forwarder.address, file)
            cloud = settings.cloud.model_copy(update={"on_loss": "fail"})
            async with EdgeClient(settings.model_copy(update={"cloud": cloud})) as client:
                upstream, events = forwarder.upstream, list[Event]()
                async for event in client.stream(PROMPT, mode="gated", max_new_tokens=NEW_TOKENS, **SAMPLING):
                    events.append(event)
                    if isinstance(event, Committed) and sum(isinstance(one, Committed) for one in events) == 20:
                        vanish(forwarder)
                failed = ending_of(events)
                assert isinstance(failed, Failed)
                assert state_of(client).waiting == 1
                forwarder.upstream = upstream
                assert failed.error.partial is not None
                rest = await client.generate(failed.error.partial, mode="gated")
                assert len(failed.error.partial.token_ids) + len(rest.token_ids) <= NEW_TOKENS
                await until(lambda: state_of(client).audited == 1, "the audit of the first part")
                skipped = failed.stats.skipped_tokens + rest.stats.skipped_tokens
                await until(lambda: client.totals().audited == skipped, "both parts are audited")

    asyncio.run(run())
