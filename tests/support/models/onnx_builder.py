"""The ONNX builder in the process of the test, which has imported torch and transformers already."""

from __future__ import annotations

import contextlib
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cloud_supervisor.export import conversion


@contextlib.contextmanager
def builder_in_process() -> Iterator[None]:
    """Run the builder of every pull in this process, with the arguments of its usual child process.

    A child process takes ten seconds to import the libraries, and less than one to build a tiny model.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "run_builder", _run_builder)
        yield


def _run_builder(arguments: Sequence[str], log: Path) -> int:
    with (
        pytest.MonkeyPatch.context() as patch,
        log.open("w", encoding="utf-8") as output,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        patch.setattr(sys, "argv", ["builder", *arguments])
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)
    return 0
