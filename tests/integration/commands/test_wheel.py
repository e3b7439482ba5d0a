"""The built distributions: their contents, and their use in an environment with only a device's libraries."""

from __future__ import annotations

import os
import subprocess
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes.application import check_application, create_application
from tests.support.processes.commands import ROOT
from tests.support.processes.installation import (
    PYTHONS,
    Distribution,
    build,
    fresh_environment,
    install,
    interpreter_for,
    link_libraries,
)


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


def test_the_wheel_says_that_it_is_typed_and_has_both_commands(device: Distribution) -> None:
    with zipfile.ZipFile(device.wheel) as archive:
        names = {*archive.namelist()}
        (scripts,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        commands = archive.read(scripts).decode()
        described = archive.read(metadata).decode()
    assert {f"{package}/py.typed" for package in top_names(device.wheel)} <= names
    assert {line.partition(" ")[0] for line in commands.splitlines()[1:] if line} == {"chaperone", "chaperone-cloud"}
    for version in PYTHONS:
        assert f"Classifier: Programming Language :: Python :: {version}\n" in described


@pytest.mark.parametrize("version", PYTHONS)
def test_the_device_writes_a_text_on_each_python(
    device: Distribution, tiny_pair: Path, tmp_path: Path, version: str
) -> None:
    """With only the packages of the extra `edge`, each as pinned, and the wheel."""
    python = fresh_environment(tmp_path / "environment", interpreter_for(version))
    install(python, "--no-index", "--no-deps", str(device.wheel))

    def output(*command: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")
        return ended.stdout

    assert output(str(python), "--version").startswith(f"Python {version}.")
    for command in ("chaperone", "chaperone-cloud"):
        assert output(str(python.parent / command), "--version") == f"{command} {project()['version']}\n"
        assert f" -F _shtab_{command.replace('-', '_')} {command}\n" in output(
            str(python.parent / command), "completion", "bash"
        )
    text = output(
        str(python.parent / "chaperone"), "generate", "--pair", "tiny", "--mode", "edge", "--max-new-tokens", "8", "hi"
    )
    assert len(text) > 8


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
