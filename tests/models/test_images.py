"""The image of a device, with all libraries that pip chooses and fetches from the package index."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.deployment.image import Builder
from tests.support.processes.commands import ROOT

pytestmark = [pytest.mark.models, pytest.mark.timeout(600)]


def test_the_steps_of_the_device_image_install_a_device(tmp_path: Path) -> None:
    image = Builder(ROOT / "docker" / "edge.Dockerfile", tmp_path, resolve=True).build("device")
    shown = subprocess.check_output(image.command("--version"), env=image.process_environment(), text=True)
    assert shown == f"chaperone {version('chaperone-llm')}\n"
    assert not image.distributions().keys() & {"accelerate", "torch", "transformers"}
