"""The Dockerfiles, by running their own steps in a fresh folder.

This shows that:
- the context has all files that a build copies, and their wheel installs the commands;
- the libraries of the extras suffice for the commands, and constraints.txt pins them all;
- a container writes nothing to its root.

It does not show that:
- the base images exist, and their system libraries suffice;
- the package index serves the libraries, and the CUDA build of torch works;
- the user of the image has the rights that it needs.

For that an image must be built. tests/models/test_images.py lets pip fetch all libraries of the device.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.deployment.context import context_files, passes
from tests.support.deployment.dockerfile import Stage, stages
from tests.support.deployment.image import Builder, Image
from tests.support.processes.commands import ROOT, announced
from tests.support.waiting import PATIENCE_S

CLOUD, EDGE = ROOT / "docker" / "cloud.Dockerfile", ROOT / "docker" / "edge.Dockerfile"
FINAL_STAGES = {("cloud", "cpu"), ("cloud", "cuda"), ("edge", "device")}
START_S = 60.0  # longest time in which a command imports its libraries, on a busy machine
UNWANTED_ON_DEVICE = {"accelerate", "onnxruntime-genai", "optimum", "torch", "transformers"}


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return Builder(CLOUD, tmp_path_factory.mktemp("cloud"))


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return Builder(EDGE, tmp_path_factory.mktemp("edge")).build("device")


def final_stage(file: str, name: str) -> Stage:
    return stages(ROOT / "docker" / f"{file}.Dockerfile")[name]


def run(image: Image, *arguments: str, **extra: str) -> str:
    """Run the entrypoint of an image to its end; return its output."""
    environment = {**image.process_environment(), **extra}
    command = image.command(*arguments)
    return subprocess.check_output(command, env=environment, cwd=image.working_folder, text=True, timeout=START_S)


# --- Images that were made -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_cloud_image_has_its_command(clouds: Builder, target: str) -> None:
    image = clouds.build(target)
    assert run(image, "--version") == f"chaperone-cloud {version('chaperone-llm')}\n"
    assert {"torch", "transformers", "onnxruntime-genai"} <= image.distributions().keys()


def test_the_device_image_has_its_command_and_no_torch(device: Image) -> None:
    assert run(device, "--version") == f"chaperone {version('chaperone-llm')}\n"
    installed = device.distributions().keys()
    assert {"chaperone-llm", "grpcio", "onnxruntime"} <= installed
    assert not installed & UNWANTED_ON_DEVICE


def test_an_image_holds_nothing_of_its_build(clouds: Builder, device: Image) -> None:
    for image in (clouds.build("cpu"), clouds.build("cuda"), device):
        assert {path.name for path in image.root.iterdir()} <= {"opt", "usr", "var"}
        assert "hatchling" not in image.distributions()


def test_a_device_writes_with_a_cloud_and_neither_writes_to_its_image(
    clouds: Builder, device: Image, tiny_pair: Path
) -> None:
    cloud = clouds.build("cpu")
    before = cloud.files(), device.files()
    home = {"CHAPERONE_HOME": str(tiny_pair.parent.parent)}
    with serving(cloud, **home) as address:
        prompt = "the list of a number is"
        written = run(device, "generate", "--pair", "tiny", "--cloud", address, "--mode", "exact", prompt, **home)
    assert written.strip()
    assert (cloud.files(), device.files()) == before


@contextmanager
def serving(image: Image, **extra: str) -> Iterator[str]:
    """Serve the tiny pair with the entrypoint of an image; yield the address. SIGTERM ends it in order."""
    arguments = ("serve", "--pair", "tiny", "--dtype", "float32", "--threads", "1", "--listen", "127.0.0.1:0")
    process = subprocess.Popen(
        image.command(*arguments),
        env={**image.process_environment(), **extra},
        cwd=image.working_folder,
        stdout=subprocess.PIPE,
    )
    alarm = threading.Timer(START_S, process.kill)  # ends the read below if the server never starts
    alarm.start()
    try:
        assert process.stdout is not None
        address = announced(process.stdout)
        alarm.cancel()
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        alarm.cancel()
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (503, 1)])
def test_the_health_check_asks_the_port_of_metrics(clouds: Builder, status: int, exit_code: int) -> None:
    image = clouds.build("cpu")
    (check,) = final_stage("cloud", "cpu").values("HEALTHCHECK")
    program, flag, code = json.loads(check.partition(" CMD ")[2])
    assert (program, flag) == ("python", "-c")
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        here = code.replace("127.0.0.1:9464", f"127.0.0.1:{server.server_port}")
        assert here != code
        ended = subprocess.run([image.path("/opt/chaperone/bin/python"), "-c", here], check=False, capture_output=True)
        thread.join()
    assert asked == ["/healthz"]
    assert ended.returncode == exit_code


# --- What the files say ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "name"), sorted(FINAL_STAGES))
def test_a_container_has_a_numbered_user_and_a_program_without_a_shell(file: str, name: str) -> None:
    stage = final_stage(file, name)
    assert stage.values("USER") == ["10001:10001"]  # Kubernetes accepts only a number as not being root
    assert stage.steps[-1].instruction == "CMD"
    assert stage.exec_form("ENTRYPOINT") == ["chaperone-cloud" if file == "cloud" else "chaperone"]
    stage.exec_form("CMD")
    assert stage.settings("ENV")["CHAPERONE_HOME"] == "/var/lib/chaperone"
    assert stage.settings("ENV")["XDG_CACHE_HOME"] == "/tmp"


def test_the_targets_of_the_cloud_differ_only_in_their_base() -> None:
    cpu, cuda = final_stage("cloud", "cpu"), final_stage("cloud", "cuda")
    for instruction in ("USER", "WORKDIR", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"):
        assert cpu.values(instruction) == cuda.values(instruction)
    assert cuda.settings("ENV") == {**cpu.settings("ENV"), "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    assert list(stages(CLOUD))[-1] == "cpu"  # the target of `docker build` without --target


@pytest.mark.parametrize("path", [CLOUD, EDGE], ids=lambda path: path.stem)
def test_nothing_secret_enters_a_layer(path: Path) -> None:
    words = re.compile(r"secret|token|password|passwd|credential|private|\bkey\b", re.IGNORECASE)
    for stage in stages(path).values():
        assert not [name for name in stage.settings("ARG") | stage.settings("ENV") if words.search(name)]
        assert not [value for value in stage.values("COPY") if words.search(value)]


def test_the_context_has_what_a_wheel_needs_and_nothing_else() -> None:
    names = context_files()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {
        *("LICENSE", "README.md", "constraints.txt", "pyproject.toml"),
        *("cloud_supervisor", "common", "configs", "edge_client"),
    }
    assert "common/chaperone_common/types.py" in names
    for name in (".venv/bin/python", ".git/config", "docker/secrets/key.pem", "edge_client/__pycache__/client.pyc"):
        assert not passes(name), name


def test_the_images_have_the_version_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tags = {
        found
        for path in sorted((ROOT / "docker").rglob("*"))
        if path.suffix in {".Dockerfile", ".md", ".yaml"}
        for found in re.findall(r"\bchaperone(?:-cloud)?:(\d+\.\d+\.\d+)", path.read_text(encoding="utf-8"))
    }
    assert tags == {project["version"]}
