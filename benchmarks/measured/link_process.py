"""An emulated link in a separate process, which reports its traffic and its own cost on request.

A thread of the device's process would compete with the engine for the interpreter's lock, and with the event loop
between two drafts. A separate process that is tied to no core runs on an idle one, which on a machine of two cores is
mostly the core of the end that waits. Its processor time is counted and is in every result.

The process writes its address, then a line of JSON for each line that it reads. It ends at the end of its input.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.kit.processes import ServerFailed
from link_emulator import LinkProxy, Profile


@dataclass(frozen=True, slots=True)
class Traffic:
    """Traffic of the link up to now: bytes with their headers, and the link's own processor time."""

    bytes_up: int = 0
    bytes_down: int = 0
    cpu_ms: float = 0.0

    def since(self, earlier: Traffic) -> Traffic:
        """Return the traffic after an earlier count."""
        return Traffic(
            self.bytes_up - earlier.bytes_up,
            self.bytes_down - earlier.bytes_down,
            self.cpu_ms - earlier.cpu_ms,
        )


class LinkProcess:
    """The running process, seen from its parent."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._line()

    def traffic(self) -> Traffic:
        """Return the traffic up to now; the request takes a fraction of a millisecond."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Traffic(**json.loads(self._line()))

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ServerFailed(f"the link's process ended with exit code {self._process.wait()}")
        return line.strip()


@contextmanager
def link_process(profile: Profile, to: str, *, seed: int, cores: Sequence[int]) -> Iterator[LinkProcess]:
    """Run a link to a server on this machine."""
    command = [sys.executable, "-m", "benchmarks.measured.link_process", "--to", to, "--seed", str(seed)]
    process = subprocess.Popen(
        [*command, "--profile", profile.model_dump_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    with process:
        try:
            yield LinkProcess(process)
        finally:
            process.terminate()


async def _serve(profile: Profile, to: str, seed: int) -> None:
    async with LinkProxy(profile, to=to, seed=seed) as proxy:
        print(proxy.address, flush=True)
        questions = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
        while await questions.readline():
            traffic = Traffic(proxy.wire_bytes_up, proxy.wire_bytes_down, time.process_time() * 1e3)
            print(json.dumps(asdict(traffic)), flush=True)


def main() -> None:
    """Serve until the input ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measured.link_process")
    parser.add_argument("--profile", required=True, help="as JSON")
    parser.add_argument("--to", required=True)
    parser.add_argument("--seed", type=int, required=True)
    args = parser.parse_args()
    asyncio.run(_serve(Profile.model_validate_json(args.profile), args.to, args.seed))


if __name__ == "__main__":
    main()
