"""The number of replicas by queue time, and the policy that Ray Serve asks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cloud_supervisor.hosting.replica import QueueTimePolicy
from cloud_supervisor.observation import Prefilled
from cloud_supervisor.observers.queue_times import QueueTimes
from cloud_supervisor.scheduling.scaling import wanted_replicas


@pytest.mark.parametrize(
    ("running", "queue_ms", "wanted"),
    [
        (2, 150.0, 3.0),
        (2, 10_000.0, 4.0),  # it doubles at most
        (2, 100.0, 2),
        (2, 25.0, 2),
        (3, 24.0, 2),
        (1, 0.0, 1),
    ],
)
def test_replicas_follow_the_queue_time(running: int, queue_ms: float, wanted: float) -> None:
    assert wanted_replicas(running, queue_ms, target_ms=100.0) == wanted


def test_the_policy_takes_the_mean_of_all_replicas() -> None:
    policy = QueueTimePolicy(target_queue_ms=100.0)
    context = SimpleNamespace(
        aggregated_metrics={"queue_ms": {"a": 300.0, "b": 0.0}}, current_num_replicas=2, target_num_replicas=2
    )
    assert policy(context) == (3.0, {})


def test_the_policy_changes_nothing_before_the_first_numbers() -> None:
    context = SimpleNamespace(aggregated_metrics=None, current_num_replicas=1, target_num_replicas=2)
    assert QueueTimePolicy(target_queue_ms=100.0)(context) == (2, {})


def test_queue_times_are_the_mean_since_the_last_reading() -> None:
    times = QueueTimes()
    for queue_s in (0.1, 0.3):
        times.notice(Prefilled(1, "tenant", 10, queue_s, 0.0))
    assert times.read_ms(waiting=False) == pytest.approx(200.0)
    assert times.read_ms(waiting=True) == pytest.approx(200.0), "requests wait, and none was answered"
    assert times.read_ms(waiting=False) == 0.0
