"""Shared by all tests: a home of their own with the tiny pair, and the settings of Hypothesis."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.processes.signals import let_children_be_interrupted

REPOSITORY = Path(__file__).resolve().parent.parent
TESTS = REPOSITORY / "tests"
# In the order of their durations; all take more than 20 s. They start first, so that no worker ends late.
LONGEST = tuple(
    TESTS / name
    for name in (
        "benchmarks/measured/test_run.py",
        "integration/replicas/test_ray.py",
        "integration/texts/test_identity.py",
        "integration/texts/test_identity_links.py",
        "integration/chaos/test_chaos.py",
        "benchmarks/load/test_load.py",
        "integration/chaos/test_rolling_restart.py",
        "integration/commands/test_examples.py",
        "integration/commands/test_calibrate.py",
        "benchmarks/load/test_capacity.py",
        "unit/gate/test_control.py",
        "unit/gate/test_control_requests.py",
        "benchmarks/quality/test_gates.py",
        "benchmarks/fleet/test_fleet.py",
        "integration/chaos/test_killed_processes.py",
        "integration/client/test_streams.py",
        "integration/texts/test_replicas.py",
        "integration/commands/test_wheel.py",
        "integration/endpoint/test_schema.py",
        "integration/endpoint/test_programs.py",
        "integration/commands/test_processes.py",
        "integration/commands/test_pull.py",
        "integration/texts/test_device_architectures.py",
        "integration/texts/test_architectures.py",
        "sim/test_first_text.py",
        "fuzz/test_fuzz.py",
    )
)
assert all(path.is_file() for path in LONGEST)
REAL_PAIR_TESTS = TESTS / "models"

# Read when onnxruntime and huggingface_hub are imported, here and in every process that a test starts.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers use all cores, so that more threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tests with two threads would spin, and take the core of the other

for variable in ("CA_FILE", "CERT_FILE", "KEY_FILE", "TOKEN"):  # of the person who runs the tests
    os.environ.pop(f"CHAPERONE_{variable}", None)

let_children_be_interrupted()

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests in tests/models as in need of the default pair, and run the longest files first.

    With several processes, all others would wait for a long file that came last. pytest-xdist keeps this order only
    with `--no-loadscope-reorder`; otherwise files with few tests come last, and the longest file has one.
    """
    for item in items:
        if item.path.is_relative_to(REAL_PAIR_TESTS):
            item.add_marker("models")
    items.sort(key=lambda item: LONGEST.index(item.path) if item.path in LONGEST else len(LONGEST))


def _digest_of_recipe() -> str:
    """Return a digest of all files that determine the tiny pair."""
    recipe = [*(REPOSITORY / "cloud_supervisor" / "export").glob("*.py")]
    recipe += [*(REPOSITORY / "common" / "chaperone_common" / "artefacts").glob("*.py")]
    recipe += [REPOSITORY / "configs" / "models.yaml", REPOSITORY / "constraints.txt"]
    digest = hashlib.sha256()
    for path in sorted(recipe):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@pytest.fixture(scope="session")
def chaperone_test_home() -> Path:
    """Return the $CHAPERONE_HOME of the tests; a changed recipe gets another folder, so no stale pair is read."""
    base = Path(os.environ.get("CHAPERONE_TEST_HOME", REPOSITORY / ".cache" / "chaperone-test"))
    home = base.resolve() / _digest_of_recipe()
    home.mkdir(parents=True, exist_ok=True)
    return home


@pytest.fixture(scope="session")
def tiny_pair(chaperone_test_home: Path) -> Path:
    """Return the folder of the tiny pair, with `edge` and `cloud` inside; the first use takes twenty seconds.

    A child process makes the pair, so that imports and settings of the conversion stay out of the tests.
    """
    command = [sys.executable, "-m", "cloud_supervisor.cli", "models", "pull", "--pair", "tiny"]
    made = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "CHAPERONE_HOME": str(chaperone_test_home)},
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{made.stdout}{made.stderr}")
    return chaperone_test_home / "models" / "tiny"


@pytest.fixture(scope="module", autouse=True)
def _home_of_tests(request: pytest.FixtureRequest, chaperone_test_home: Path) -> Iterator[None]:
    """Keep every test away from the user's models, except the tests of the default pair."""
    if request.path.is_relative_to(REAL_PAIR_TESTS):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHAPERONE_HOME", str(chaperone_test_home))
        yield
