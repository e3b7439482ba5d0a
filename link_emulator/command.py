"""`chaperone link`: run an emulated link, or list the profiles."""

from __future__ import annotations

import asyncio
import signal

from chaperone_common.command.console import Console
from chaperone_common.errors import ConfigError
from link_emulator.profile import DirectionProfile, Profile, load_profile, profile_names
from link_emulator.proxy import LinkProxy


def chosen_profile(name_or_path: str | None, rtt_ms: float | None) -> Profile:
    """The profile that the flags ask for; raises ConfigError."""
    if name_or_path is not None:
        return load_profile(name_or_path)
    try:
        return Profile.fixed(rtt_ms or 0.0)
    except ConfigError:
        raise ConfigError(f"--rtt-ms: {rtt_ms} is not a time from 0 to 120000 ms") from None


def run_link(profile: Profile, console: Console, *, listen: str, to: str, seed: int) -> None:
    """Run a link until SIGTERM or Ctrl-C; the first line of output is its address, the last of errors a summary."""
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
    """What crossed the link, in a line."""
    return (
        f"[{proxy.connections} connections, {proxy.resets} reset; up {proxy.bytes_up} bytes, {proxy.wire_bytes_up} on "
        f"the wire; down {proxy.bytes_down} bytes, {proxy.wire_bytes_down} on the wire]"
    )


def list_profiles(console: Console) -> None:
    """Print a line for each profile that comes along."""
    console.line(f"{'name':20} {'label':10} {'rtt':>8} {'up':>12} {'down':>12}  what it is like")
    for name in profile_names():
        profile = load_profile(name)
        columns = f"{name:20} {profile.label:10} {profile.rtt_ms:5g} ms"
        console.line(f"{columns} {_rate(profile.up):>12} {_rate(profile.down):>12}  {profile.description}")


def _rate(way: DirectionProfile) -> str:
    rate_kbit_s = way.mean_rate_kbit_s
    if rate_kbit_s is None:
        return "no limit"
    return f"{rate_kbit_s / 1000:g} Mbit/s" if rate_kbit_s >= 1000 else f"{rate_kbit_s:g} kbit/s"
