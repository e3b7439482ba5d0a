"""`chaperone models`: the models on this device, without torch."""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Callable, Collection

from chaperone_common.artefacts.manifest import ModelManifest
from chaperone_common.clock import Clock, MonotonicClock
from chaperone_common.command.completion import names_files
from chaperone_common.command.console import Console
from chaperone_common.command.pair_name import add_pair_name, required_pair
from chaperone_common.command.parser import refuse
from chaperone_common.command.program import EXIT_ERROR, EXIT_OK
from chaperone_common.command.signals import ended_at_once
from chaperone_common.errors import ConfigError, ModelError, ModelMissing
from chaperone_common.suggestion import nearest
from chaperone_common.types import Mode
from edge_client.apps.cli.options import Commands, add_settings, config_of
from edge_client.apps.cli.values import file_name, pair
from edge_client.artefacts.model import check_model, has_model, pull_model, pulled_pairs, remove_model
from edge_client.artefacts.pull import MAX_MODEL_BYTES, PulledModel, PullProgress
from edge_client.artefacts.workplace import megabytes
from edge_client.config import EdgeConfig
from edge_client.link.credentials import read_addresses

_EVERY_S = 0.2  # between two updates of the progress line
_GIB = 1 << 30
_NONE = "no model is on this device; run `chaperone models pull --cloud HOST:PORT`"


def add_models(commands: Commands) -> None:
    """Add the commands."""
    what = "fetch, list, verify and remove the models on this device"
    models = commands.add_parser("models", help=what, description=what)
    model_commands: Commands = models.add_subparsers(required=True, metavar="COMMAND")
    _add_pull(model_commands)
    listing = model_commands.add_parser("list", help="the models that are here")
    verify = model_commands.add_parser("verify", help="compare all files with their checksums")
    remove = model_commands.add_parser("remove", help="delete the model of a pair from this device")
    for command, run in ((listing, _list), (verify, _verify), (remove, _remove)):
        add_pair_name(command, pair, what="the pair" if command is remove else "this pair alone")
        command.set_defaults(run=run)


def _add_pull(commands: Commands) -> None:
    what = "fetch the model of a pair, from the cloud unless --from says otherwise; does nothing if it is here"
    pull = commands.add_parser("pull", help=what, description=f"{what}. An interrupted pull goes on where it ended.")
    names_files(
        pull.add_argument(
            "--from",
            dest="source",
            type=file_name,
            metavar="FOLDER|URL",
            help="a folder `edge` of a pulled pair, or the address of one, https://HOST/FOLDER",
        )
    )
    pull.add_argument("--sha256", type=_sha256, metavar="HEX", help="of manifest.json: take no other model")
    pull.add_argument(
        "--max-gib", type=_gibibytes, default=MAX_MODEL_BYTES, metavar="N", help="largest model to take; 16 by default"
    )
    add_settings(pull, takes_name=True)
    pull.set_defaults(run=_pull, closing_audit=False)


def pull_if_missing(console: Console, config: EdgeConfig, mode: Mode) -> None:
    """Fetch a model that is not here, if the user has named a cloud. Mode `edge` sends nothing, so it fetches nothing.

    Without a cloud nothing happens, and loading the model then says what to do.
    """
    if mode is Mode.EDGE or "address" not in config.cloud.model_fields_set or has_model(config.pair):
        return
    place = ", ".join(read_addresses(config.cloud))
    console.say(f"{config.pair}: the model is not on this device; fetching it from {place}")
    pulled = _pulled(console, config)
    console.say(f"{config.pair}: {megabytes(pulled.total_bytes)} in {pulled.folder}")


def _pull(console: Console, arguments: argparse.Namespace) -> int:
    config = config_of(arguments)
    pulled = _pulled(console, config, source=arguments.source, sha256=arguments.sha256, max_bytes=arguments.max_gib)
    if pulled.fetched_bytes == 0:
        console.line(f"{config.pair}: already here, and whole, in {pulled.folder}")
    else:
        console.line(f"{config.pair}: ready in {pulled.folder}")
    console.line(_described(config.pair, [config.pair], pulled.manifest, f"manifest {pulled.manifest_sha256}"))
    return EXIT_OK


def _pulled(
    console: Console,
    config: EdgeConfig,
    *,
    source: str | None = None,
    sha256: str | None = None,
    max_bytes: int = MAX_MODEL_BYTES,
) -> PulledModel:
    progress = ProgressLine(config.pair, console.progress, MonotonicClock())
    try:
        with ended_at_once():  # what has arrived is kept
            return asyncio.run(
                pull_model(
                    config, source=source, sha256=sha256, max_bytes=max_bytes, progress=progress, say=console.complain
                )
            )
    finally:
        console.progress("")


def _list(console: Console, arguments: argparse.Namespace) -> int:
    here, name = pulled_pairs(), arguments.pair
    if name is not None and name not in here:
        console.complain(f"{name}: not here{nearest(name, here)}; `chaperone models list` shows all")
        return EXIT_ERROR
    if not here:
        console.say(_NONE)
    names = _chosen(arguments)
    for name in names:
        try:
            console.line(_described(name, names, check_model(EdgeConfig(pair=name)), "here"))
        except ModelError as error:
            console.line(f"{_aligned(name, names)} broken: {error.message}")
    return EXIT_OK


def _verify(console: Console, arguments: argparse.Namespace) -> int:
    code = EXIT_OK
    if not (names := _chosen(arguments)):
        raise ModelMissing(_NONE)
    for name in names:
        try:
            console.line(_described(name, names, check_model(EdgeConfig(pair=name), verify=True), "whole"))
        except ModelError as error:
            console.complain(error.message)
            code = EXIT_ERROR
    return code


def _remove(console: Console, arguments: argparse.Namespace) -> int:
    name = required_pair(arguments)
    if not asyncio.run(remove_model(name, say=console.complain)):
        raise ConfigError(
            f"NAME: no model of {name!r} is on this device{nearest(name, pulled_pairs())}; `chaperone models list` "
            "shows all"
        )
    console.line(f"{name}: removed")
    return EXIT_OK


def _chosen(arguments: argparse.Namespace) -> list[str]:
    return [arguments.pair] if arguments.pair is not None else pulled_pairs()


def _described(name: str, names: Collection[str], manifest: ModelManifest, state: str) -> str:
    return f"{_aligned(name, names)} {manifest.model:32} {megabytes(manifest.total_bytes):>10}  {state}"


def _aligned(name: str, names: Collection[str]) -> str:
    return name.ljust(max(12, *map(len, names)))


class ProgressLine:
    """A line on a terminal with the bytes of a pull, their rate and the time that is left."""

    def __init__(self, pair: str, show: Callable[[str], None], clock: Clock) -> None:
        self._pair = pair
        self._show = show
        self._clock = clock
        self._began: tuple[float, int] | None = None  # time and bytes; those that were here count in no rate
        self._shown_s = float("-inf")

    def __call__(self, progress: PullProgress) -> None:
        """Show the progress, unless it was shown a moment ago."""
        now_s = self._clock.now()
        if self._began is None:
            self._began = now_s, progress.done_bytes
        if now_s - self._shown_s < _EVERY_S and progress.done_bytes < progress.total_bytes:
            return
        self._shown_s = now_s
        self._show(self._line(progress, now_s))

    def _line(self, progress: PullProgress, now_s: float) -> str:
        assert self._began is not None
        began_s, before = self._began
        done, total = progress.done_bytes, progress.total_bytes
        line = f"{self._pair}: {100 * done // max(total, 1):3}%  {done / 1e6:.1f} of {megabytes(total)}"
        if now_s > began_s and done > before:
            rate = (done - before) / (now_s - began_s)
            line += f"  {megabytes(round(rate))}/s  {(total - done) / rate:.0f} s left"
        return f"{line}  {progress.file}"


def _sha256(text: str) -> str:
    digest = text.lower().removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        refuse(text, "no SHA-256: 64 hexadecimal digits, as `sha256sum manifest.json` prints")
    return digest


def _gibibytes(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 5 and int(text) >= 1):
        refuse(text, "not a whole number of GiB, from 1 to 9999")
    return int(text) * _GIB
