"""Where the two commands begin: small, so that Ctrl-C while the rest is being imported ends them without a traceback.

The packages of the ends are imported by name: this file stands above all layers, though it lies in the lowest folder,
whose own import takes no time.
"""

from __future__ import annotations

import signal
from importlib import import_module

EXIT_INTERRUPTED = 130


def device() -> int:
    """Run `chaperone`; return its exit code."""
    return _run("edge_client.apps.cli.main")


def cloud() -> int:
    """Run `chaperone-cloud`; return its exit code."""
    return _run("cloud_supervisor.cli")


def _run(module: str) -> int:
    """Import a command and run it. Before and after that, Ctrl-C ends the process as the system does, without a word.

    As a KeyboardInterrupt it would pass through libraries that make errors of their own of it.
    """
    handler = signal.getsignal(signal.SIGINT)
    told = handler is signal.default_int_handler  # or the process was started so that it ignores Ctrl-C
    if told:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    main = import_module(module).main
    try:
        signal.signal(signal.SIGINT, handler)
        exit_code: int = main()
        if told:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return exit_code
