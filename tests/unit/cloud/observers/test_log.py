"""Refusals make one line per second, tenant and reason; a line holds no text of a device."""

from __future__ import annotations

import asyncio
import logging

import pytest

from benchmarks.simulation.virtual_time import run
from cloud_supervisor.observation import Outcome, Refused, StreamEnded
from cloud_supervisor.observers.log import LogObserver


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[object, ...]]:
    fields = ("tenant", "reason", "count", "peer", "detail")
    return [tuple(getattr(record, field, None) for field in fields) for record in caplog.records]


def test_refusals_are_counted_by_the_second(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "cloud_supervisor")

    async def scenario() -> None:
        observer = LogObserver()
        for number in range(1000):
            observer.notice(Refused("acme", f"ipv4:10.0.0.{number % 7}", "sessions", "quota: sessions"))
        observer.notice(Refused("acme", "ipv4:10.0.0.9", "unavailable", "the cloud is shutting down"))
        await asyncio.sleep(1.5)
        observer.notice(Refused("acme", "ipv4:10.0.0.1", "sessions", ""))
        await asyncio.sleep(5.0)
        observer.notice(Refused("acme", "ipv4:10.0.0.2", "sessions", ""))

    run(scenario())
    assert lines(caplog) == [
        ("acme", "sessions", 1, "ipv4:10.0.0.0", None),
        ("acme", "unavailable", 1, "ipv4:10.0.0.9", "the cloud is shutting down"),
        ("acme", "sessions", 999, "ipv4:10.0.0.5", None),
        ("acme", "sessions", 1, "ipv4:10.0.0.1", None),
        ("acme", "sessions", 1, "ipv4:10.0.0.2", None),
    ]
    assert [record.levelname for record in caplog.records] == ["INFO"] * 5


@pytest.mark.parametrize("reason", ["invalid_argument", "failed_precondition", "out_of_range", "unauthenticated"])
def test_a_message_that_may_quote_a_device_is_left_out(caplog: pytest.LogCaptureFixture, reason: str) -> None:
    caplog.set_level(logging.DEBUG, "cloud_supervisor")

    async def scenario() -> None:
        LogObserver().notice(Refused("acme", "peer", reason, "the device has 'canary'"))

    run(scenario())
    assert lines(caplog) == [("acme", reason, 1, "peer", None)]


def test_tenants_do_not_fill_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "cloud_supervisor")

    async def scenario() -> None:
        observer = LogObserver()
        for number in range(5000):
            observer.notice(Refused(f"tenant-{number}", "peer", "sessions", ""))

    run(scenario())
    assert len(caplog.records) == 201


def test_the_end_of_a_stream_is_a_detail(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "cloud_supervisor")
    LogObserver().notice(StreamEnded(7, "acme", Outcome.CLOSED, 1.23456))
    (record,) = caplog.records
    assert (record.levelname, record.__dict__["outcome"], record.__dict__["seconds"]) == ("DEBUG", "closed", 1.235)


def test_a_token_that_has_ended_is_named_by_its_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "cloud_supervisor")

    async def scenario() -> None:
        observer = LogObserver()
        observer.notice(Refused("anonymous", "peer", "unauthenticated", "", "abc"))
        observer.notice(Refused("anonymous", "peer", "unauthenticated", "", "def"))
        observer.notice(Refused("anonymous", "peer", "unauthenticated", ""))
        await asyncio.sleep(1.5)
        observer.notice(Refused("anonymous", "peer", "permission_denied", ""))

    run(scenario())
    assert [record.__dict__.get("token") for record in caplog.records] == ["abc", "def", None]
