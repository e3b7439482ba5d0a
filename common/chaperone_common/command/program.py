"""The frame of every command: run it, report its errors, and return its exit code."""

from __future__ import annotations

from collections.abc import Callable

from chaperone_common.command.console import Console, ReaderGone
from chaperone_common.errors import ChaperoneError, InvalidRequest

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_SIGNAL = 128  # plus the number of the signal that ended the process, as shells count
EXIT_INTERRUPTED = EXIT_SIGNAL + 2  # SIGINT


def run_program(console: Console, run: Callable[[], int]) -> int:
    """Run a command and return its exit code. Errors of Chaperone are reported on the console."""
    try:
        return console.finished(_exit_code(console, run))
    except SystemExit as ended:  # raised by argparse, which has reported the reason
        raise SystemExit(console.finished(EXIT_OK if ended.code is None else int(ended.code))) from None


def _exit_code(console: Console, run: Callable[[], int]) -> int:
    try:
        return run()
    except InvalidRequest as error:
        console.complain(error.message)
        return EXIT_USAGE
    except ReaderGone:
        return EXIT_OK
    except ChaperoneError as error:
        console.complain(error.message)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
