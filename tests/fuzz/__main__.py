"""Fuzz one target: `python -m tests.fuzz TARGET [libFuzzer flags] [FOLDER...]`.

The first folder receives the inputs that reach new code; it and the others are where the search begins.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["chaperone_common", "tests"]):
    from tests.fuzz import cloud_session, frame_decoder

TARGETS = {"cloud_session": cloud_session.check, "frame_decoder": frame_decoder.check}


def main() -> None:
    """Run until a flag or a finding ends it."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        raise SystemExit(f"usage: python -m tests.fuzz {{{','.join(TARGETS)}}} [libFuzzer flags] [FOLDER...]")
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
