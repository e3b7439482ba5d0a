"""Compare the link emulator with its profiles: `python -m benchmarks calibration`.

For each profile, and for plain links of 20, 100 and 200 ms, `chaperone-link run` is started and measured from outside:

round trip   an echo of 32 bytes, one after another. The same link, built from the same seed, also runs in virtual
             time; both draw the same jitter and losses, so that their quantiles compare pair by pair.
throughput   bytes pushed one way as fast as the link takes them; bytes out per second, without the first tenth,
             compared with the rate of the profile less its headers.
outage       how long a scheduled outage keeps the bytes.
kernel       the emulator's rate limit compared with the kernel's `tbf` in a network namespace, if one can be made.

A row passes if it is within 2 ms or 5% of the configured value, whichever is more. Outages and resets are left out of
the first two, and loss of the second. Other load on the machine can only add to a round trip, so a failed row is
measured again, up to three times in all. `runs` counts the measurements, and the last one decides. A rate of null is no
limit: such a row only shows the capacity of the proxy.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from benchmarks.emulator.kernel_rate import kernel_mbit_s, why_no_namespace
from benchmarks.kit.provenance import provenance
from link_emulator import Link, Profile, load_profile, profile_names
from link_emulator.profile import OutageProfile, PeriodicOutages, ResetProfile

FIXED_RTT_MS = (20.0, 100.0, 200.0)
ECHO_BYTES = 32
GAP_S = 0.005  # between echoes, so that each meets an idle link
TOLERANCE_MS = 2.0
TOLERANCE_SHARE = 0.05
MAX_RUNS = 3
QUANTILES = {"p5": 0.05, "median": 0.5, "p95": 0.95}
UNLIMITED_MBIT_S = 200.0  # the rate of pushing where there is no limit
OUTAGE = PeriodicOutages(every_s=2.0, lasts_s=0.6)
KERNEL_MBIT_S = (1.0, 10.0, 50.0)
ETHERNET = {"mtu_bytes": 1514, "header_bytes": 66}  # what tbf counts: with the 14 bytes of the frame
BLOCK = bytes(64 * 1024)

Arrivals = list[tuple[float, int]]  # (time [s], bytes so far)
Way = Literal["up", "down"]


# --- Ends -----------------------------------------------------------------------------------------------------------


@contextmanager
def server(serve: Any) -> Iterator[str]:
    """Call `serve(socket)` in a thread for each connection; yield the address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@contextmanager
def across(profile: Profile, seed: int, to: str) -> Iterator[socket.socket]:
    """Yield a connection to a server across a link in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "link.yaml"
        path.write_text(profile.model_dump_json(exclude_none=True), encoding="utf-8")  # JSON is YAML
        with link_process(path, to, seed) as address:
            host, _, port = address.rpartition(":")
            with socket.create_connection((host, int(port))) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                yield connection


@contextmanager
def link_process(profile: Path, to: str, seed: int) -> Iterator[str]:
    """Run `chaperone-link run`; yield its address."""
    command = [sys.executable, "-m", "link_emulator.command", "run"]
    command += ["--profile", str(profile), "--to", to, "--seed", str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def echo(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, suppress(OSError):
        while data := connection.recv(65536):
            connection.sendall(data)


def push(connection: socket.socket, size: int) -> None:
    with suppress(OSError):
        while size > 0:
            connection.sendall(BLOCK[: min(size, len(BLOCK))])
            size -= len(BLOCK)
        connection.shutdown(socket.SHUT_WR)


def receive(connection: socket.socket) -> Arrivals:
    arrivals, total = [], 0
    while data := connection.recv(65536):
        total += len(data)
        arrivals.append((time.monotonic(), total))
    return arrivals


# --- Measurements ---------------------------------------------------------------------------------------------------


def round_trips_ms(profile: Profile, seed: int, count: int) -> list[float]:
    """Return measured round trips, without the first echo, which waits for the handshake."""
    trips_ms = []
    with server(echo) as address, across(profile, seed, address) as connection:
        for number in range(count + 1):
            time.sleep(GAP_S if number else 0.0)
            began_s = time.monotonic()
            connection.sendall(bytes(ECHO_BYTES))
            missing = ECHO_BYTES
            while missing:
                missing -= len(connection.recv(missing))
            trips_ms.append((time.monotonic() - began_s) * 1e3)
    return trips_ms[1:]


def configured_trips_ms(profile: Profile, seed: int, count: int) -> list[float]:
    """Return the model's times for the same echoes, in virtual time."""
    link = Link(profile, seed)
    now_s = link.up.arrival(link.down.arrival(link.up.arrival(0.0, 0), 0), 0)  # the handshake draws too
    trips_ms = []
    for _ in range(count + 1):
        began_s = now_s + GAP_S
        now_s = link.down.arrival(link.up.arrival(began_s, ECHO_BYTES), ECHO_BYTES)
        trips_ms.append((now_s - began_s) * 1e3)
    return trips_ms[1:]


def throughput_mbit_s(profile: Profile, seed: int, way: Way, seconds: float) -> float:
    """Return the payload that came out per second, after the first tenth."""
    size = int((configured_mbit_s(profile, way) or UNLIMITED_MBIT_S) * 125_000 * seconds)
    arrivals: Arrivals = []
    done = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            if way == "down":
                push(connection, size)
            else:
                arrivals.extend(receive(connection))
            done.wait()

    with server(serve) as address, across(profile, seed, address) as connection:
        try:
            if way == "up":
                push(connection, size)
                while not (arrivals and arrivals[-1][1] == size):
                    time.sleep(0.01)
            else:
                arrivals.extend(receive(connection))
        finally:
            done.set()
    return rate_mbit_s(arrivals)


def rate_mbit_s(arrivals: Arrivals) -> float:
    late = [arrival for arrival in arrivals if arrival[1] >= arrivals[-1][1] / 10]
    return (late[-1][1] - late[0][1]) / (late[-1][0] - late[0][0]) / 125_000


def configured_mbit_s(profile: Profile, way: Way) -> float | None:
    """Return the payload rate that the profile allows, in full segments."""
    rate_kbit_s = (profile.up if way == "up" else profile.down).mean_rate_kbit_s
    return None if rate_kbit_s is None else rate_kbit_s / 1000 * profile.segment_bytes / profile.mtu_bytes


def outage_ms(seconds: float) -> list[float]:
    """Return the gaps that a periodic outage makes in a steady stream of small messages."""
    profile = Profile.fixed(20.0).model_copy(update={"outages": OutageProfile(periodic=OUTAGE)})
    arrivals: Arrivals = []
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            arrivals.extend(receive(connection))
        ended.set()

    with server(serve) as address, across(profile, 1, address) as connection:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            connection.sendall(b".")
            time.sleep(0.001)
        connection.shutdown(socket.SHUT_WR)
        ended.wait(60)
    times = [at_s for at_s, _ in arrivals]
    gaps = [(after - before) * 1e3 for before, after in itertools.pairwise(times)]
    return [gap for gap in gaps if gap > OUTAGE.lasts_s * 500]


# --- Rows -----------------------------------------------------------------------------------------------------------


def row(measured: float, configured: float, floor: float = 0.0) -> dict[str, Any]:
    """Return both numbers, their difference, and whether it is small enough."""
    error = measured - configured
    return {
        "configured": round(configured, 3),
        "measured": round(measured, 3),
        "error": round(error, 3),
        "passed": abs(error) <= max(floor, TOLERANCE_SHARE * configured),
    }


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[round(share * (len(values) - 1))]


def calibrate(name: str, profile: Profile, seed: int, seconds: float) -> dict[str, Any]:
    """Return all rows of one profile."""
    steady = profile.model_copy(update={"outages": OutageProfile(), "resets": ResetProfile()})
    count = max(20, min(200, int(seconds * 1e3 / (profile.rtt_ms + GAP_S * 1e3))))
    configured_ms = configured_trips_ms(steady, seed, count)
    runs = 0
    trip: dict[str, Any] = {"passed": False}
    while runs < MAX_RUNS and not passed(trip):
        runs += 1
        measured_ms = round_trips_ms(steady, seed, count)
        trip = {
            quantity: row(quantile(measured_ms, share), quantile(configured_ms, share), TOLERANCE_MS)
            for quantity, share in QUANTILES.items()
        }
    rows: dict[str, Any] = {"mean_rtt_ms": profile.rtt_ms, "echoes": count, "runs": runs, "round_trip_ms": trip}
    lossless = without_loss(steady)
    ways: tuple[Way, Way] = ("up", "down")
    for way in ways:
        configured = configured_mbit_s(lossless, way)
        reached = throughput_mbit_s(lossless, seed, way, seconds)
        rows[f"{way}_mbit_s"] = (
            {"configured": None, "measured": round(reached, 3)} if configured is None else row(reached, configured)
        )
    print(f"{name:20} {verdicts(rows)}", flush=True)
    return rows


def without_loss(profile: Profile) -> Profile:
    ways = {"up": profile.up, "down": profile.down}
    return profile.model_copy(update={side: way.model_copy(update={"loss": 0.0}) for side, way in ways.items()})


def verdicts(rows: dict[str, Any]) -> str:
    trip = rows["round_trip_ms"]["median"]
    rates = " ".join(f"{way} {rows[f'{way}_mbit_s']['measured']:g} Mbit/s" for way in ("up", "down"))
    return (
        f"round trip {trip['measured']:g} of {trip['configured']:g} ms, {rates}; {'ok' if passed(rows) else 'FAILED'}"
    )


def passed(rows: Any) -> bool:
    """Return whether every row in a tree of rows passed."""
    if not isinstance(rows, dict):
        return True
    return bool(rows.get("passed", True)) and all(passed(value) for value in rows.values())


def against_kernel(seconds: float) -> dict[str, Any]:
    """Return the emulator's and the kernel's rate limit: payload per second over the same kind of frames."""
    obstacle = why_no_namespace()
    if obstacle is not None:
        return {"not_done": obstacle}
    rows: dict[str, Any] = {}
    for mbit_s in KERNEL_MBIT_S:
        limited = Profile.fixed(0.0, rate_kbit_s=mbit_s * 1000).model_copy(update=ETHERNET)
        kernel = kernel_mbit_s(mbit_s, seconds)
        emulated = throughput_mbit_s(limited, 1, "up", seconds)
        rows[f"{mbit_s:g}_mbit_s"] = row(emulated, kernel)
        print(f"{mbit_s:g} Mbit/s: kernel {kernel:.3f}, emulator {emulated:.3f} Mbit/s of payload", flush=True)
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m benchmarks calibration`."""
    parser.add_argument("--profile", action="append", metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement, about")
    parser.add_argument("--seed", type=int, default=1)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; return the rows of each profile, and the number that passed."""
    measured = provenance()
    profiles = {name: load_profile(name) for name in args.profile or profile_names()}
    if not args.profile:
        profiles |= {f"fixed {rtt_ms:g} ms": Profile.fixed(rtt_ms) for rtt_ms in FIXED_RTT_MS}
    links = {name: calibrate(name, profile, args.seed, args.seconds) for name, profile in profiles.items()}
    gaps_ms = outage_ms(args.seconds * 2)
    outage = {"gaps": len(gaps_ms), "longest_gap_ms": row(max(gaps_ms), OUTAGE.lasts_s * 1e3, TOLERANCE_MS)}
    kernel = against_kernel(args.seconds)
    summary = {
        "links_passed": [name for name, rows in links.items() if passed(rows)],
        "links_failed": [name for name, rows in links.items() if not passed(rows)],
        "outage_passed": passed(outage),
        "kernel_passed": "not done" if "not_done" in kernel else passed(kernel),
        "loopback_round_trip_ms": links["loopback"]["round_trip_ms"]["median"]["measured"]
        if "loopback" in links
        else None,
    }
    measured["machine"]["load_average"] = os.getloadavg()  # above the number of cores, round trips suffer
    settings = {"seconds": args.seconds, "seed": args.seed, "tolerance_ms": TOLERANCE_MS, "tolerance": TOLERANCE_SHARE}
    results = {"links": links, "outage": outage, "kernel": kernel}
    return {"benchmark": "calibration", **measured, "settings": settings, **results, "summary": summary}
