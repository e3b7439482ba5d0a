"""The functions that the installed scripts call.

Importing a command takes up to a second. Ctrl-C in that time ends the process without a traceback, so this module must
run before any of our packages is imported: `edge_client` and `link_emulator` import all their parts. Therefore it lies
here, in the package that imports nothing, and imports the commands by name.
"""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from typing import Any

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130
_OURS = ("chaperone_common", "edge_client", "cloud_supervisor", "link_emulator")


def device() -> int:
    """Run `chaperone` and return its exit code."""
    return _run("edge_client.apps.cli.main", extra="edge")


def cloud() -> int:
    """Run `chaperone-cloud` and return its exit code."""
    return _run("cloud_supervisor.cli")


def link() -> int:
    """Run `chaperone-link` and return its exit code."""
    return _run("link_emulator.command")


def _end_if_interrupted(unraisable: Any) -> None:
    """End the process if Python would only report a KeyboardInterrupt, as in the callback of a weak reference."""
    if unraisable.exc_type is KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    sys.__unraisablehook__(unraisable)


def _run(module: str, *, extra: str | None = None) -> int:
    """Import a command and run it. Before and after that, Ctrl-C ends the process by the signal itself.

    `extra` has the packages without which the command cannot be imported; None if it reports missing ones itself.
    A KeyboardInterrupt would pass through libraries that turn it into errors of their own.
    """
    handler = signal.getsignal(signal.SIGINT)
    raises_interrupt = handler is signal.default_int_handler  # False if the parent process ignores Ctrl-C
    if raises_interrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        sys.unraisablehook = _end_if_interrupted
    try:
        main = import_module(module).main
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").partition(".")[0] in _OURS:  # a bug: show its traceback
            raise
        if sys.stderr is not None:
            needed = f"run `pip install 'chaperone-llm[{extra}]'`"
            sys.stderr.write(f"chaperone: the package {error.name} is not installed; {needed}\n")
        return EXIT_ERROR
    try:
        signal.signal(signal.SIGINT, handler)
        exit_code: int = main()
        if raises_interrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return exit_code
