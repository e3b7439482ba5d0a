"""An attacker in a process of its own, with the lowest priority: another machine would not take the service's time.

It writes a line once the attack has begun, then a line of JSON for each line that it reads: streams opened, and how
they ended. It ends at the end of its input.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.attacks.kinds import ATTACKS, Target
from benchmarks.kit.processes import ServerFailed

LOWEST_PRIORITY = 19


@dataclass(frozen=True, slots=True)
class Toll:
    """Streams that an attack opened up to now, and how they ended: gRPC statuses, `reset`, `late`."""

    opened: int
    endings: dict[str, int]


class AttackerProcess:
    """The running process, seen from its parent."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._line()

    def toll(self) -> Toll:
        """Return the streams up to now."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Toll(**json.loads(self._line()))

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ServerFailed(f"the attacker's process ended with exit code {self._process.wait()}")
        return line


@contextmanager
def attacker_process(
    kind: str, address: str, *, digest: str, token: str, cores: Sequence[int]
) -> Iterator[AttackerProcess]:
    """Run one kind of attack on a service on this machine."""
    options = ("--address", address, "--digest", digest, "--cores", ",".join(map(str, cores)))
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.attacks.attacker", kind, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "ATTACKER_TOKEN": token},
    )
    with process:
        try:
            yield AttackerProcess(process)
        finally:
            process.terminate()


async def _attack(kind: str, target: Target) -> None:
    attack = asyncio.ensure_future(ATTACKS[kind](target))
    begun = asyncio.ensure_future(target.ready.wait())
    await asyncio.wait((attack, begun), return_when=asyncio.FIRST_COMPLETED)
    if attack.done():
        attack.result()
    print("begun", flush=True)
    questions = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    while await questions.readline() and not attack.done():
        print(json.dumps({"opened": target.opened, "endings": dict(target.endings)}), flush=True)
    if attack.done():
        attack.result()
    attack.cancel()


def main() -> None:
    """Attack until the input ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks.attacker")
    parser.add_argument("kind", choices=ATTACKS)
    parser.add_argument("--address", required=True)
    parser.add_argument("--digest", required=True, help="of the tokenizer")
    parser.add_argument("--cores", required=True, help="numbers, separated by commas")
    args = parser.parse_args()
    os.nice(LOWEST_PRIORITY)
    os.sched_setaffinity(0, [int(core) for core in args.cores.split(",")])
    asyncio.run(_attack(args.kind, Target(args.address, args.digest, os.environ["ATTACKER_TOKEN"])))


if __name__ == "__main__":
    main()
