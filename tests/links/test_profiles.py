"""Profiles: every file loads, the documentation shows its numbers, and mistakes are reported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chaperone_common.errors import ConfigError
from link_emulator import Link, Profile, load_profile, profile_names
from link_emulator.profile import profiles_folder

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = ["loopback", "lan", "wifi", "4g", "5g", "transatlantic", "satellite", "train-with-tunnels", "50kbit"]


def test_the_names_are_known() -> None:
    assert profile_names() == sorted(NAMES)


@pytest.mark.parametrize("path", sorted(profiles_folder().iterdir()), ids=lambda path: path.name)
def test_every_file_loads_and_makes_a_link(path: Path) -> None:
    profile = load_profile(path.stem)
    assert profile == load_profile(path)
    assert profile.label == "synthetic"
    assert Link(profile, seed=1).up.arrival(0.0, 100) >= 0.0


def test_only_profiles_with_tunnels_reset_connections() -> None:
    assert [name for name in NAMES if load_profile(name).resets.mean_interval_s] == ["train-with-tunnels"]


def test_a_fixed_profile_is_only_its_round_trip() -> None:
    profile = Profile.fixed(rtt_ms=100)
    assert profile.rtt_ms == 100.0
    link = Link(profile)
    assert link.down.arrival(link.up.arrival(0.0, 10_000), 10_000) == pytest.approx(0.1)


def test_the_documentation_shows_the_files() -> None:
    text = (REPOSITORY / "docs" / "links.md").read_text(encoding="utf-8")
    rows = {
        cells[0].strip("`"): cells[1:]
        for line in text.splitlines()
        if (cells := [cell.strip() for cell in line.strip("|").split("|")])[0].strip("`") in NAMES
    }
    assert rows.keys() == set(NAMES)
    for name, cells in rows.items():
        assert cells == row_of(load_profile(name)), name


def row_of(profile: Profile) -> list[str]:
    """Return the row of a profile in the table."""
    both = (profile.up, profile.down)
    jitter = " / ".join(f"{way.jitter_ms:g}" for way in both) + f" {profile.up.jitter}"
    outages = []
    if profile.outages.periodic is not None:
        outages.append(f"{profile.outages.periodic.lasts_s:g} s every {profile.outages.periodic.every_s:g} s")
    if profile.outages.random is not None:
        outages.append(
            f"about {profile.outages.random.mean_lasts_s:g} s every {profile.outages.random.mean_interval_s:g} s"
        )
    return [
        " / ".join(f"{way.delay_ms:g}" for way in both),
        jitter if any(way.jitter_ms for way in both) else "-",
        " / ".join("-" if way.rate_kbit_s is None else f"{way.rate_kbit_s / 1000:g}" for way in both),
        " / ".join(f"{way.queue_kbytes:g}" for way in both) if profile.up.rate_kbit_s else "-",
        " / ".join(f"{way.loss * 100:g}" for way in both) if profile.up.loss else "-",
        "; ".join(outages) or "-",
        f"every {profile.resets.mean_interval_s:g} s" if profile.resets.mean_interval_s else "-",
    ]


# --- Mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "hint"), [("4gg", " (did you mean '4g'?)"), ("carrier-pigeon", ""), ("", "")])
def test_an_unknown_name_gives_the_list(name: str, hint: str) -> None:
    known = ", ".join(sorted(NAMES))
    expected = f"profile: {name!r} is not known{hint}; known: {known}; or give the path of a YAML file"
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        load_profile(name)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("up:\n  delay: 5\n", ":2: up.delay: unknown key (did you mean 'delay_ms'?)"),
        ("up:\n  delay_ms: -5\n", ":2: up.delay_ms: -5: input should be greater than or equal to 0"),
        ("up:\n  delay_ms: 5 ms\n", ":2: up.delay_ms: '5 ms' is not a number"),
        ("up:\n  loss: 5\n", ":2: up.loss: 5: input should be less than or equal to 0.5"),
        ("up:\n  rate_kbit_s: 0\n", ":2: up.rate_kbit_s: 0: input should be greater than or equal to 1"),
        ("up:\n  queue_kbytes: 1\n", ":2: up.queue_kbytes: 1: input should be greater than or equal to 4"),
        ("up:\n  jitter: cauchy\n", ":2: up.jitter: 'cauchy' is not 'normal', 'exponential' or 'pareto'"),
        (
            "up:\n  delay_ms: 2\n  jitter_ms: 3\n",
            "jitter_ms 3 exceeds delay_ms 2, so that messages would arrive before",
        ),
        ("up:\n  rate_kbit_s: 9\n  trace: x\n", "rate_kbit_s 9 and trace both set the rate; give one of them"),
        ("up:\n  trace: [1, 2]\n", "up.trace: a list of numbers; name the file that holds them"),
        ("up:\n  trace: []\n", "trace is empty"),
        ("up:\n  trace: nowhere.trace\n", "nowhere.trace: the trace cannot be read: No such file"),
        ("label: real\n", ":1: label: 'real' is not 'synthetic' or 'measured'"),
        ("mtu_bytes: 1500.5\n", ":1: mtu_bytes: 1500.5 is not a whole number"),
        ("outages:\n  periodic: {every_s: 5, lasts_s: 5}\n", "lasts_s 5 is not below every_s 5, so that the link"),
        ("resets:\n  at_s: [3, 2]\n", ":2: resets.at_s: [3, 2]: the times must rise; sort them"),
        ("resets:\n  mean_interval_s: .inf\n", "resets.mean_interval_s: '.inf' is not a plain value"),
    ],
)
def test_a_mistake_in_a_profile_is_reported(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"{text}description: mine\n")
    with pytest.raises(ConfigError) as caught:
        load_profile(path)
    assert complaint in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_description_is_required(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("label: measured\n")
    with pytest.raises(ConfigError, match="description: this key is required"):
        load_profile(path)


@pytest.mark.parametrize("rtt_ms", [-1.0, float("nan"), float("inf"), 1e6])
def test_a_fixed_profile_has_a_sensible_round_trip(rtt_ms: float) -> None:
    with pytest.raises(ConfigError, match="delay_ms"):
        Profile.fixed(rtt_ms)


def test_a_trace_is_read_from_the_folder_of_the_profile(tmp_path: Path) -> None:
    (tmp_path / "down.trace").write_text("1\n2\n4\n")
    path = tmp_path / "mine.yaml"
    path.write_text("label: measured\ndescription: mine\ndown:\n  trace: down.trace\n")
    profile = load_profile(str(path))
    assert profile.down.trace == (1, 2, 4)
    assert profile.down.mean_rate_kbit_s == 3 * 1500 * 8 / 4
    assert profile.up.mean_rate_kbit_s is None
