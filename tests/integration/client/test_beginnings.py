"""Generations that fail or end at their beginning: each yields exactly one terminal event."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.errors import (
    ERROR_OF,
    Cancelled,
    ChaperoneError,
    CloudLost,
    InternalError,
    InvalidRequest,
    Overloaded,
    ProtocolViolation,
)
from chaperone_common.frames import Capabilities
from edge_client import EdgeClient, Event, Failed, Finished, GenerationTimeout, PromptInput, Unverified
from edge_client.config import CloudSettings
from edge_client.model.onnx_model import OnnxModel
from edge_client.ports import CloudLink, Metadata
from tests.support.fakes.target import Brake, fake_target
from tests.support.processes.clients import config_for, ending_of
from tests.support.processes.servers import serving
from tests.support.waiting import PATIENCE_S, until

PROMPT = "the list of a number is"
MET = sorted({*ERROR_OF.values(), InternalError, ProtocolViolation} - {InvalidRequest}, key=lambda kind: kind.__name__)


class Refusing:
    """A cloud that answers the first request with an error."""

    def __init__(self, error: ChaperoneError) -> None:
        self._error = error

    @property
    def connected(self) -> bool:
        return False

    async def capabilities(self, timeout_ms: float) -> Capabilities:
        raise self._error

    def link(self, metadata: Metadata = ()) -> CloudLink:
        raise AssertionError("a stream to a cloud that refuses")

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("mode", ["exact", "gated"])
@pytest.mark.parametrize("kind", MET)
def test_every_error_as_a_first_answer_is_a_terminal_event(
    tiny_pair: Path, kind: type[ChaperoneError], mode: str
) -> None:
    async def run() -> list[Event]:
        async with EdgeClient(config_for("127.0.0.1:1"), cloud=Refusing(kind("cloud: no"))) as client:
            return [event async for event in client.stream(PROMPT, mode=mode, max_new_tokens=3)]

    events = asyncio.run(run())
    ending = ending_of(events)
    if mode == "gated" and issubclass(kind, CloudLost | Overloaded | InternalError):  # as later in a text
        assert isinstance(ending, Finished)
        assert isinstance(events[0], Unverified)
    else:
        assert isinstance(ending, Failed)
        assert type(ending.error) is kind


class Held:
    """A slow call in a thread, until it is let go."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self._work = work
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, *args: Any, **named: Any) -> Any:
        self.reached.set()
        assert self.let_go.wait(PATIENCE_S)
        return self._work(*args, **named)


def held(phase: str, client: EdgeClient, monkeypatch: pytest.MonkeyPatch) -> Held | None:
    """Hold a generation in a phase of its beginning; return None if an unreachable cloud holds it."""
    match phase:
        case "its prompt is read":
            hold = Held(client.prepare)
            monkeypatch.setattr(client, "prepare", hold)
        case "its model is loaded":
            hold = Held(OnnxModel.load)
            monkeypatch.setattr(OnnxModel, "load", hold)
        case _:
            return None
    return hold


PHASES = ["its prompt is read", "its cloud is sought", "its model is loaded"]


@pytest.mark.parametrize("phase", PHASES)
def test_closing_ends_a_generation_in_every_phase(tiny_pair: Path, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    async def run() -> tuple[list[Event], EdgeClient]:
        patience = CloudSettings(connect_timeout_ms=60_000.0)
        client = EdgeClient(config_for("127.0.0.1:1", cloud=patience))
        hold = held(phase, client, monkeypatch)
        events: list[Event] = []

        async def collect() -> None:
            mode = "edge" if phase == "its model is loaded" else "exact"
            events.extend([event async for event in client.stream(PROMPT, mode=mode)])

        writing = asyncio.create_task(collect())
        if hold is not None:
            await until(hold.reached.is_set, phase)
        else:
            await asyncio.wait([writing], timeout=0.2)
        closing = asyncio.create_task(client.aclose())
        await asyncio.wait_for(asyncio.shield(writing), PATIENCE_S)
        if hold is not None:
            hold.let_go.set()
        await asyncio.wait_for(closing, PATIENCE_S)
        return events, client

    events, client = asyncio.run(run())
    (ending,) = events
    assert isinstance(ending, Failed)
    assert type(ending.error) is Cancelled
    assert not client._assembly.model.loaded
    assert all(site.drop() is None for site in client._assembly.peer._sites.values()), "no channel is left"


@pytest.mark.parametrize("phase", PHASES)
def test_the_time_limit_holds_in_every_phase(tiny_pair: Path, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    async def run() -> Event:
        patience = CloudSettings(connect_timeout_ms=60_000.0)
        async with EdgeClient(config_for("127.0.0.1:1", cloud=patience)) as client:
            hold = held(phase, client, monkeypatch)
            mode = "edge" if phase == "its model is loaded" else "exact"
            events = [event async for event in client.stream(PROMPT, mode=mode, timeout=0.1)]
            if hold is not None:
                hold.let_go.set()
            return ending_of(events)

    ending = asyncio.run(run())
    assert isinstance(ending, Failed)
    assert isinstance(ending.error, GenerationTimeout)


def test_the_audit_after_a_text_is_not_bound_by_its_time_limit(tiny_pair: Path) -> None:
    brake = Brake()

    async def run() -> bool:
        async with (
            serving(fake_target(tiny_pair, brake), tiny_pair) as (_, address),
            EdgeClient(config_for(address, risk=1.0)) as client,
        ):
            await client.generate(PROMPT, mode="edge", max_new_tokens=1)  # makes the objects that are made once
            await client.capabilities()
            text = client.stream(PROMPT, mode="gated", max_new_tokens=6, timeout=3.0)
            assert isinstance(ending_of([event async for event in text]), Finished)
            await until(brake.reached.is_set, "the cloud reads for the audit")
            (audit,) = client._runs.audits
            await asyncio.wait([audit], timeout=3.2)
            pending = not audit.done()
            brake.let_go.set()
            await asyncio.wait_for(audit, PATIENCE_S)
            return pending

    assert asyncio.run(run()), "the time of the text is over, and its audit continues"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": 5}, "prompt: int is not text, a list of messages"),
        ({"prompt": b"hi"}, "prompt: bytes is not text"),
        ({"prompt": None}, "prompt: NoneType is not text"),
        ({"prompt": {"role": "user", "content": "hi"}}, "prompt: dict is not text"),
        ({"committed_token_ids": 7}, "committed_token_ids: 7 is not a list"),
        ({"committed_token_ids": "ab"}, "committed_token_ids: 'ab' is not a list"),
        ({"raw": "no"}, "raw: 'no' is neither true nor false"),
        ({"parse_special": 7}, "parse_special: 7 is neither"),
        ({"warm_start": "x"}, "warm_start: 'x' is neither"),
        ({"prompt": PromptInput((5,)), "raw": True}, "the prompt is tokens already"),
        ({"prompt": PromptInput((5,)), "parse_special": True}, "the prompt is tokens already"),
    ],
)
def test_values_of_a_wrong_type_are_refused_by_name(tiny_pair: Path, changes: dict[str, Any], words: str) -> None:
    client = EdgeClient(config_for("127.0.0.1:1"))
    with pytest.raises(InvalidRequest, match=words):
        client.request(**{"prompt": PROMPT, "mode": "edge", **changes})
    assert client.request(PROMPT, mode="edge", committed_token_ids=None, raw=None).committed_token_ids == ()


def test_an_object_that_is_no_handle_is_refused(tiny_pair: Path) -> None:
    handle: Any = 5
    with pytest.raises(InvalidRequest, match="cancellation: 5 is not a Cancellation"):
        asyncio.run(EdgeClient(config_for("127.0.0.1:1")).generate(PROMPT, mode="edge", cancellation=handle))
