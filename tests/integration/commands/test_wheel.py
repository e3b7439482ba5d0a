"""The built distributions: their contents, and their use in an environment with only a device's libraries."""

from __future__ import annotations

import subprocess
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes.application import check_application, create_application
from tests.support.processes.commands import ROOT
from tests.support.processes.installation import Distribution, build, fresh_environment, install, link_libraries


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    return build(ROOT, tmp_path_factory.mktemp("device"))


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    return build(ROOT / "link_emulator", tmp_path_factory.mktemp("link"))


def project(folder: Path = ROOT) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def top_names(wheel: Path) -> set[str]:
    """Return the importable names at the top of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    return {top for top in tops if not top.endswith(".dist-info")}


def test_the_wheel_has_our_packages_and_no_other_name(device: Distribution) -> None:
    assert top_names(device.wheel) == {"chaperone_common", "edge_client", "cloud_supervisor"}


def test_the_wheel_of_the_emulator_has_the_emulator_alone(link: Distribution) -> None:
    assert top_names(link.wheel) == {"link_emulator"}


def test_both_distributions_have_one_version() -> None:
    emulator = project(ROOT / "link_emulator")
    assert emulator["version"] == project()["version"]
    assert f"chaperone-llm=={emulator['version']}" in emulator["dependencies"]


def test_the_wheel_holds_every_configuration_file(device: Distribution) -> None:
    with zipfile.ZipFile(device.wheel) as archive:
        packaged = {name for name in archive.namelist() if name.startswith("chaperone_common/configs/")}
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*") if path.is_file()}
    assert packaged == {f"chaperone_common/{file}" for file in files}


def test_the_wheel_works_next_to_an_application_with_folders_of_the_same_names(
    device: Distribution, tmp_path: Path
) -> None:
    python = fresh_environment(tmp_path / "environment")
    link_libraries(python, [*project()["dependencies"], *project()["optional-dependencies"]["edge"]])
    install(python, "--no-index", "--no-deps", str(device.wheel))
    create_application(tmp_path / "application")
    check_application(tmp_path / "application", python)


def test_the_emulator_works_next_to_the_base_of_the_device(
    device: Distribution, link: Distribution, tmp_path: Path
) -> None:
    python = fresh_environment(tmp_path / "environment")
    link_libraries(python, project()["dependencies"])
    install(python, "--no-index", str(device.wheel), str(link.wheel))
    listed = subprocess.run([python.parent / "chaperone-link", "profiles"], capture_output=True, text=True, check=True)
    assert "4g " in listed.stdout
