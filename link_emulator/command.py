"""`chaperone-link`: emulate a network link between two programs on this machine.

Exit codes: 0 ended by SIGTERM, or done; 1 the output could not be written; 2 wrong usage or profile; 130 ended by
Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version

from chaperone_common.address import host_and_port
from chaperone_common.command.console import Console
from chaperone_common.command.parser import CommandParser, checked
from chaperone_common.command.program import EXIT_OK, run_program
from chaperone_common.errors import ConfigError
from link_emulator.profile import DirectionProfile, Profile, load_profile, profile_names
from link_emulator.proxy import LinkProxy

PROGRAM = "chaperone-link"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    console = Console.standard(PROGRAM)
    return run_program(console, lambda: _run(argv, console))


def _run(argv: Sequence[str] | None, console: Console) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.command == "profiles":
        list_profiles(console)
    else:
        profile = chosen_profile(arguments.profile, arguments.rtt_ms)
        run_link(profile, console, listen=arguments.listen, to=arguments.to, seed=arguments.seed)
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    description, _, exit_codes = (__doc__ or "").partition("\n")
    parser = CommandParser(prog=PROGRAM, description=description, epilog=exit_codes)
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('chaperone-llm')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    commands.add_parser("profiles", help="list the packaged profiles")
    run = commands.add_parser("run", help="carry connections across an emulated link, until Ctrl-C or SIGTERM")
    kind = run.add_mutually_exclusive_group(required=True)
    kind.add_argument("--profile", metavar="NAME|PATH", help="a name that `profiles` lists, or a YAML file")
    kind.add_argument("--rtt-ms", type=float, help="a plain link with this round trip")
    run.add_argument(
        "--listen",
        type=checked(lambda text: host_and_port(text, any_port=True)),
        metavar="HOST:PORT",
        default="127.0.0.1:0",
        help="the address to connect to; port 0, the default, takes a free one",
    )
    run.add_argument(
        "--to",
        type=checked(host_and_port),
        metavar="HOST:PORT",
        required=True,
        help="the address of the server, on this machine too",
    )
    run.add_argument("--seed", type=int, default=0, help="seed of jitter, loss, outages and resets")
    return parser


def chosen_profile(name_or_path: str | None, rtt_ms: float | None) -> Profile:
    """Return the profile that the flags name; raises ConfigError."""
    if name_or_path is not None:
        return load_profile(name_or_path)
    try:
        return Profile.fixed(rtt_ms or 0.0)
    except ConfigError:
        raise ConfigError(f"--rtt-ms: {rtt_ms} is not a time from 0 to 120000 ms") from None


def run_link(profile: Profile, console: Console, *, listen: str, to: str, seed: int) -> None:
    """Run a link until SIGTERM or Ctrl-C.

    The first line of output is its address. The last line of errors is a summary.
    """
    console.out.check()
    if seed < 0:
        raise ConfigError(f"--seed: {seed} is negative; give a whole number from 0 on")
    asyncio.run(_serve(LinkProxy(profile, listen=listen, to=to, seed=seed), console))


async def _serve(proxy: LinkProxy, console: Console) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    try:
        async with proxy:
            console.line(proxy.address)
            await ended.wait()
    finally:
        if proxy.connections:
            console.say(summary(proxy))


def summary(proxy: LinkProxy) -> str:
    """Return one line that counts connections, resets and bytes."""
    return (
        f"[{proxy.connections} connections, {proxy.resets} reset; up {proxy.bytes_up} bytes, {proxy.wire_bytes_up} on "
        f"the wire; down {proxy.bytes_down} bytes, {proxy.wire_bytes_down} on the wire]"
    )


def list_profiles(console: Console) -> None:
    """Print one line for each packaged profile."""
    console.line(f"{'name':20} {'label':10} {'rtt':>8} {'up':>12} {'down':>12}  description")
    for name in profile_names():
        profile = load_profile(name)
        columns = f"{name:20} {profile.label:10} {profile.rtt_ms:5g} ms"
        console.line(f"{columns} {_rate(profile.up):>12} {_rate(profile.down):>12}  {profile.description}")


def _rate(way: DirectionProfile) -> str:
    rate_kbit_s = way.mean_rate_kbit_s
    if rate_kbit_s is None:
        return "no limit"
    return f"{rate_kbit_s / 1000:g} Mbit/s" if rate_kbit_s >= 1000 else f"{rate_kbit_s:g} kbit/s"


if __name__ == "__main__":
    sys.exit(main())
