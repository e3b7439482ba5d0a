"""Run the steps of a Dockerfile in a folder that stands for the root of the image, without an engine.

COPY and the Python commands of RUN are done. Commands for the system, such as `apt-get`, must have a known form, and do
nothing. A program is not isolated: it sees the whole machine, and finds the files of its image by mapped paths.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

from benchmarks.kit.distributions import closure
from tests.support.deployment.context import copy_context
from tests.support.deployment.dockerfile import Stage, assignments, stages
from tests.support.processes.installation import fresh_environment, install, link_libraries

PYTHON_IMAGE = re.compile(r"python:3\.11\.\d+-slim-bookworm")
OTHER_IMAGE = re.compile(r"nvidia/cuda:[\w.-]+")
SYSTEM_COMMANDS = [
    re.compile(form)
    for form in (
        r"apt-get update",
        r"apt-get install --yes --no-install-recommends( [a-z0-9][a-z0-9.+-]+)+",
        r"rm -rf /var/lib/apt/lists/\*",
        r"ldconfig",
        r"groupadd --gid 10001 chaperone",
        r"useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/chaperone"
        r" --shell /usr/sbin/nologin chaperone",
    )
]
FOLDER_COMMAND = re.compile(r"install --directory --owner=10001 --group=10001 --mode=0750 (/\S+)")
PIP_OPTIONS = {"--no-cache-dir": 0, "-c": 1, "--index-url": 1}  # and how many words follow each


class Image:
    """The files and settings that a stage has made so far."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.working_folder = root
        self.variables: dict[str, str] = {}  # ARG and ENV
        self.environment: dict[str, str] = {}  # ENV alone: what a container gets
        self.entrypoint: list[str] = []

    def path(self, written: str) -> Path:
        """Return the place of a path of the image on this machine."""
        return self.root / written.lstrip("/") if written.startswith("/") else self.working_folder / written

    def process_environment(self) -> dict[str, str]:
        """Return the environment of a container, with its paths mapped, and nothing of this process."""

        def mapped(value: str) -> str:
            return ":".join(str(self.path(part)) if part.startswith("/") else part for part in value.split(":"))

        return {name: mapped(value) for name, value in self.environment.items()}

    def command(self, *arguments: str) -> list[str]:
        """Return the entrypoint with arguments; its program is found on the PATH of the image."""
        program = shutil.which(self.entrypoint[0], path=self.process_environment()["PATH"])
        if program is None:
            raise FileNotFoundError(f"{self.entrypoint[0]}: not on the PATH of the image")
        return [program, *self.entrypoint[1:], *arguments]

    def distributions(self) -> dict[str, Distribution]:
        """Return the installed distributions of the environment in /opt/chaperone by name."""
        (packages,) = self.root.glob("opt/chaperone/lib/python*/site-packages")
        return {found.name: found for found in distributions(path=[str(packages)])}

    def files(self) -> set[Path]:
        """Return all files and folders of the image; links are not followed."""
        return set(self.root.rglob("*"))


class Builder:
    """Builds the stages of one Dockerfile below a folder.

    Args:
        dockerfile: The file to read.
        folder: Where the roots of the stages are made.
        resolve: Let pip choose and fetch all libraries, as a build does. Without it pip installs only this project, and
            the libraries are links to those installed here: that neither shows that the index has them, nor that pip
            would choose these.
    """

    def __init__(self, dockerfile: Path, folder: Path, *, resolve: bool = False) -> None:
        self.stages = stages(dockerfile)
        self._folder = folder
        self._resolve = resolve
        self._made: dict[str, Image] = {}
        self._context = folder / "context"
        copy_context(self._context)

    def build(self, name: str) -> Image:
        """Run the steps of a stage, after those of the stages that it needs; raise ValueError for an unknown step."""
        if name not in self._made:
            stage = self.stages[name]
            image = self._begin(stage)
            for step in stage.steps:
                self._run_step(image, step.instruction, step.value)
            if values := stage.values("ENTRYPOINT"):
                image.entrypoint = stage.exec_form("ENTRYPOINT")
                assert len(values) == 1
            self._made[name] = image
        return self._made[name]

    def _begin(self, stage: Stage) -> Image:
        root = self._folder / stage.name
        if stage.base in self.stages:
            base = self.build(stage.base)
            _copy_tree(base.root, root, base.root, root)
            image = Image(root)
            image.environment, image.variables = {**base.environment}, {**base.environment}
            image.working_folder = image.path(f"/{base.working_folder.relative_to(base.root)}")
            return image
        root.mkdir()
        if not (PYTHON_IMAGE.fullmatch(stage.base) or OTHER_IMAGE.fullmatch(stage.base)):
            raise ValueError(f"FROM {stage.base}: an unknown image")
        if PYTHON_IMAGE.fullmatch(stage.base) and any("python" in command for command in stage.values("RUN")):
            self._make_environment(root / "usr/local")
        return Image(root)

    def _run_step(self, image: Image, instruction: str, value: str) -> None:
        match instruction:
            case "ARG" | "ENV":
                image.variables |= assignments(value)
                if instruction == "ENV":
                    image.environment |= assignments(value)
            case "WORKDIR":
                image.working_folder = image.path(value)
                image.working_folder.mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy(image, value.split())
            case "RUN":
                for command in re.split(r"\s+&&\s+", value):
                    self._run(image, command)
            case "USER" | "EXPOSE" | "HEALTHCHECK" | "ENTRYPOINT" | "CMD":
                pass
            case _:
                raise ValueError(f"{instruction} {value}: an unknown step")

    def _copy(self, image: Image, words: list[str]) -> None:
        *sources, destination = words
        target = image.path(destination)
        if sources[0].startswith("--from="):
            origin = self.build(sources.pop(0).removeprefix("--from="))
            (source,) = sources
            _copy_tree(origin.path(source), target, origin.root, image.root)
            return
        for name in sources:
            source_path = self._context / name
            if source_path.is_dir():
                _copy_tree(source_path, target, source_path, source_path)
            elif source_path.is_file():
                target.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source_path, target / source_path.name)
            else:
                raise ValueError(f"COPY {name}: not in the context; see .dockerignore")

    def _run(self, image: Image, command: str) -> None:
        if any(form.fullmatch(command) for form in SYSTEM_COMMANDS):
            return
        if folder := FOLDER_COMMAND.fullmatch(command):
            image.path(folder[1]).mkdir(parents=True)
            return
        program, *arguments = _expanded(image, command)
        python = _program(image, program)
        match arguments:
            case ["-c", _]:
                _call(image, str(python), *arguments)
            case ["-m", "venv", folder_name]:
                self._make_environment(Path(folder_name))
            case ["-m", "pip", _, *_] if self._resolve:
                _call(image, str(python), *arguments)
            case ["-m", "pip", "wheel", *options]:
                _call(image, sys.executable, "-m", "pip", "--python", str(python), "wheel", "--no-index", *options)
            case ["-m", "pip", "install", *words]:
                _install_offline(python, words, image.working_folder)
            case _:
                raise ValueError(f"RUN {command}: an unknown step")

    def _make_environment(self, folder: Path) -> None:
        if self._resolve:
            venv.create(folder, with_pip=True, symlinks=True)
        else:
            fresh_environment(folder)


def _expanded(image: Image, command: str) -> list[str]:
    """Return the words of a command as the shell of the image would see them, with mapped paths."""
    mapped = re.sub(r"(?<=\s)/(?=[a-z])|^/", f"{image.root}/", command)
    listing = f'set -- {mapped}; printf "%s\\0" "$@"'
    words = subprocess.check_output(
        ["/bin/sh", "-euc", listing], cwd=image.working_folder, env=image.variables, text=True
    )
    return words.removesuffix("\0").split("\0")


def _program(image: Image, written: str) -> Path:
    places = [Path(written)] if "/" in written else [image.path(f"/usr/local/bin/{written}")]
    for place in places:
        if place.name.startswith("python") and place.exists():
            return place
    raise ValueError(f"RUN {written}: no Python of the image")


def _call(image: Image, *command: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        command, cwd=image.working_folder, env=environment, capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{ended.stdout}{ended.stderr}")


def _install_offline(python: Path, words: list[str], folder: Path) -> None:
    """Install wheels of this project without their libraries, and link those that they and the other words name."""
    constraints, requirements = "", []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in PIP_OPTIONS:
            following = [rest.pop(0) for _ in range(PIP_OPTIONS[word])]
            constraints = following[0] if word == "-c" else constraints
        elif word.startswith("-"):
            raise ValueError(f"pip install {word}: an unknown option")
        elif wheel := re.fullmatch(r"(\S+\.whl)\[([a-z,]+)\]", word):
            install(python, "--no-deps", "--no-index", wheel[1])
            requirements += _wanted(python, wheel[2].split(","))
        else:
            requirements.append(word)
    _check_pinned(closure(requirements), (folder / constraints).read_text(encoding="utf-8"))
    link_libraries(python, requirements)


def _wanted(python: Path, extras: list[str]) -> list[str]:
    """Return the requirements that the wheel of this project states, for some of its extras."""
    (packages,) = python.parent.parent.glob("lib/python*/site-packages")
    (project,) = distributions(path=[str(packages)], name="chaperone-llm")
    known = project.metadata.get_all("Provides-Extra") or []
    if unknown := set(extras) - set(known):
        raise ValueError(f"pyproject.toml has no extra {', '.join(sorted(unknown))}")
    stated = [Requirement(text) for text in project.requires or ()]
    wanted = [
        requirement
        for requirement in stated
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
    ]
    return [f"{each.name}[{','.join(each.extras)}]" if each.extras else each.name for each in wanted]


def _check_pinned(names: set[str], constraints: str) -> None:
    pinned = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in constraints.splitlines()}
    if loose := names - pinned:
        raise ValueError(f"constraints.txt does not pin {', '.join(sorted(loose))}")


def _copy_tree(source: Path, target: Path, old_root: Path, new_root: Path) -> None:
    """Copy a folder into another one. Scripts name their interpreter by its full path, so theirs are written again."""
    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    if old_root == new_root:
        return
    for script in [*target.glob("**/bin/*"), *target.glob("**/pyvenv.cfg")]:
        if script.is_file() and not script.is_symlink() and str(old_root).encode() in (content := script.read_bytes()):
            script.write_bytes(content.replace(str(old_root).encode(), str(new_root).encode()))
