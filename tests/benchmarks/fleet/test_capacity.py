"""The search for replicas, the places of devices, and distributions in little memory."""

from __future__ import annotations

import argparse
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.fleet import run as command
from benchmarks.fleet.capacity import LATE_SHARE, Search, needs
from benchmarks.fleet.model import Demand, Fleet, affine_step
from benchmarks.fleet.population import Population, jump_hash
from benchmarks.fleet.simulation import outcomes
from benchmarks.fleet.spread import Spread
from benchmarks.fleet.totals import Punctuality, Target, Totals

CHAT = Demand("chat", completion_tokens=50, round_trips=4, hidden_round_trips=4, tokens_per_forward=5, device_ms=1500)
SLOW = affine_step(100, 2)  # ms
FLEET = Fleet(devices=240, replicas=1, think_s=10, warmup_s=5, window_s=15, step_tokens=64)
TARGET = Target(answer_ms=800.0)


def search(demand: Demand = CHAT, target: Target = TARGET, sample_answers: int = 2000) -> Search:
    return Search(demand, SLOW, seed=1, target=target, sample_answers=sample_answers)


# --- The search -----------------------------------------------------------------------------------------------------


def test_the_replicas_that_are_needed_keep_the_target_and_fewer_do_not() -> None:
    need = search().need(FLEET)
    assert need.enough
    assert need.totals.replicas == need.fleet.replicas > 1, "the whole fleet was simulated"
    assert need.totals.devices == FLEET.devices
    assert need.totals.answers.late_share <= LATE_SHARE
    fewer = search().simulate(FLEET, need.fleet.replicas - 1)
    assert fewer.late_share > LATE_SHARE


def test_more_replicas_are_not_slower() -> None:
    percentiles = [
        search().simulate(FLEET, replicas).verification_ms.percentiles((95,))["p95"] for replicas in (2, 4, 8, 16)
    ]
    for more, fewer in zip(percentiles[1:], percentiles, strict=False):
        assert more <= 1.03 * fewer


def test_a_tighter_target_needs_more_replicas() -> None:
    tight = search(target=Target(answer_ms=420.0)).need(FLEET)
    assert tight.fleet.replicas > search().need(FLEET).fleet.replicas


def test_late_prompts_count_too() -> None:
    demand = replace(CHAT, prompt_tokens=100)
    loose, tight = (search(demand, Target(800.0, prompt_ms)).need(FLEET) for prompt_ms in (1e6, 1000.0))
    assert tight.fleet.replicas > loose.fleet.replicas
    assert tight.totals.prompts.late_share <= LATE_SHARE


def test_a_target_below_a_single_forward_cannot_be_kept() -> None:
    need = search(target=Target(answer_ms=50.0)).need(replace(FLEET, devices=12))
    assert not need.enough
    assert need.fleet.replicas == 12


def test_devices_alone_need_no_cloud() -> None:
    need = search(Demand("edge", completion_tokens=50, device_ms=1000)).need(FLEET)
    assert need.enough
    assert not need.trials


def test_each_search_begins_where_the_last_one_ended() -> None:
    small, large = needs(search(), FLEET, [120, 240])
    assert large.trials[0].replicas == 2 * small.fleet.replicas


def test_a_search_is_reproduced_by_its_seed() -> None:
    assert search().need(FLEET).trials == search().need(FLEET).trials


# --- Samples of replicas --------------------------------------------------------------------------------------------


def test_a_replica_of_a_sample_is_that_of_the_whole() -> None:
    fleet = replace(FLEET, replicas=4)
    [first, *_] = outcomes(fleet, CHAT, SLOW, 1)
    sample = search().simulate(fleet, 4, sample_answers=1)
    assert sample.replicas == 3
    assert first.began <= sample.began < sum(outcome.began for outcome in outcomes(fleet, CHAT, SLOW, 1))


def test_the_error_of_a_sample_is_that_of_many_samples() -> None:
    rng = np.random.default_rng(2)
    shares, errors = [], []
    for _ in range(400):
        sample = Punctuality()
        for chance in rng.beta(2, 38, 60):  # the share of late answers differs between replicas
            sample.add(np.where(rng.random(300) < chance, 2.0, 0.0).tolist(), 1.0)
        shares.append(sample.late_share)
        errors.append(sample.error(10_000) or 0.0)
    assert np.mean(shares) == pytest.approx(0.05, rel=0.05)
    assert np.mean(errors) == pytest.approx(np.std(shares), rel=0.1)
    assert Punctuality().error(0) == 0.0


# --- Places ---------------------------------------------------------------------------------------------------------


def test_devices_are_spread_evenly_and_move_only_to_new_replicas() -> None:
    hashes = np.random.default_rng(1).integers(0, 2**64, 20_000, np.uint64)
    ten, eleven = jump_hash(hashes, 10), jump_hash(hashes, 11)
    assert np.bincount(ten, minlength=10) == pytest.approx([2000] * 10, rel=0.1)
    moved = ten != eleven
    assert set(eleven[moved]) == {10}
    assert moved.mean() == pytest.approx(1 / 11, rel=0.1)
    assert not jump_hash(hashes, 1).any()


def test_every_device_has_one_replica_and_keeps_its_traits() -> None:
    population = Population.draw(replace(FLEET, devices=500), seed=3)
    for replicas in (1, 7, 500):
        places = population.by_replica(replicas)
        assert len(places) == replicas
        assert sorted(np.concatenate(places)) == [*range(500)]
    assert np.array_equal(population.speeds, Population.draw(replace(FLEET, devices=500, replicas=9), seed=3).speeds)


# --- Memory ---------------------------------------------------------------------------------------------------------


def test_percentiles_of_many_values_are_within_a_quarter_of_a_percent() -> None:
    values = np.random.default_rng(4).lognormal(4, 1, 50_000)
    spread = Spread()
    for part in np.split(values, 10):
        spread.add(part.tolist())
    assert len(spread) == 50_000
    assert spread.mean == pytest.approx(values.mean())
    for name, value in spread.percentiles((50, 95, 99)).items():
        assert value == pytest.approx(np.percentile(values, float(name[1:])), rel=0.004)
    assert Spread().percentiles((50,)) == {}
    zeros = Spread()
    zeros.add([0.0, 0.0])
    assert zeros.percentiles((50,)) == {"p50": 0.0}


def test_memory_does_not_grow_with_the_number_of_replicas() -> None:
    def peak(replicas: int) -> int:
        fleet = replace(FLEET, devices=30 * replicas, replicas=replicas, warmup_s=1, window_s=5)
        totals = Totals(TARGET)
        tracemalloc.start()
        for outcome in outcomes(fleet, CHAT, SLOW, 1):
            totals.add(outcome)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1)  # what is imported and cached at first
    assert peak(24) < 1.5 * peak(6)


# --- The command ----------------------------------------------------------------------------------------------------


def run(*options: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(options))


def test_the_command_reports_the_replicas_of_each_size(tmp_path: Path) -> None:
    path = tmp_path / "demands.json"
    rows = [{"name": "sync", "completion_tokens": 20, "round_trips": 3}, {"name": "edge", "completion_tokens": 20}]
    path.write_text(json.dumps(rows), encoding="utf-8")
    result = run(
        "--demand", str(path), "--needed", "40,20", "--warmup-s", "5", "--window-s", "60", "--step-base-ms", "200",
        "--sample-answers", "100",
    )  # fmt: skip
    found = [(row["strategy"], row["devices"]) for row in result["needed"]]
    assert found == [("sync", 20), ("sync", 40), ("edge", 20), ("edge", 40)]
    sync, edge = result["needed"][1], result["needed"][3]
    assert sync["devices_per_replica"] == 40 / sync["replicas"]
    assert sync["simulated"]["devices"] == 40
    assert sync["late_share"] <= 0.05
    assert sync["late_share_error"] == 0.0
    assert {"p50", "p95", "p99"} <= sync["verification_ms"].keys()
    assert sync["trials"][-1]["simulated"] == sync["replicas"]
    assert (edge["replicas"], edge["devices_per_replica"]) == (0, None)
    assert result["summary"]["sync"]["verification_ms"] == sync["verification_ms"]
    assert result["target"] == {"answer_ms": 1500.0, "prompt_ms": 5000.0, "share": 0.95, "resolution": 0.01}
    assert result["cost"].keys() == {"processor_s", "peak_mib"}
    json.dumps(result)
