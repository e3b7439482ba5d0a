"""The device's model on the disk of the cloud: its manifest, and the files that the manifest names."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import BinaryIO

from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    ManifestFile,
    ModelManifest,
    is_file_name,
    parse_manifest,
)
from chaperone_common.errors import ModelError, ModelMissing

_LOG = logging.getLogger(__name__)


class DeviceModel:
    """The device's model of one pair. It is looked at for each request, since it may be replaced at any time."""

    def __init__(self, pair: str) -> None:
        self.pair = pair
        self._folder = pair_folder(pair, "edge")
        self._logged = ""  # the problem that the log has

    def manifest(self) -> tuple[bytes, ModelManifest]:
        """Return the manifest, as it is on disk and parsed.

        Checksums are not compared: the device compares them. Raises ModelMissing, whose message is for devices; the log
        has the problem.
        """
        try:
            with _opened(self._folder / MANIFEST_NAME) as file:
                content = file.read(MAX_MANIFEST_BYTES + 1)
            place, remedy = str(self._folder / MANIFEST_NAME), self._remedy
            if len(content) > MAX_MANIFEST_BYTES:
                raise ModelError(f"{place}: it is larger than {MAX_MANIFEST_BYTES} bytes; {remedy}")
            manifest = parse_manifest(content, role="edge", place=place, remedy=remedy)
            strange = [name for name in manifest.files if not is_file_name(name)]
            if strange:
                raise ModelError(f"{place}: files: {strange[0]!r} is no plain name of a file; {remedy}")
        except (OSError, ModelError) as error:
            raise self._absent(error) from None
        return content, manifest

    def open(self, name: str, expected: ManifestFile) -> BinaryIO:
        """Open a file that the manifest names; raises as `manifest` does, also for another size."""
        try:
            file = _opened(self._folder / name)
            if (size := os.fstat(file.fileno()).st_size) != expected.bytes:
                file.close()
                raise ModelError(f"{self._folder / name}: {size} bytes, the manifest says {expected.bytes}")
        except (OSError, ModelError) as error:
            raise self._absent(error) from None
        return file

    @property
    def _remedy(self) -> str:
        return f"run `chaperone-cloud models pull --pair {self.pair}` on this machine"

    def _absent(self, error: Exception) -> ModelMissing:
        """Log a problem once, and return the error for the device, which learns no path of this machine."""
        problem = f"{error}"
        if problem != self._logged:
            self._logged = problem
            _LOG.warning("devices cannot get the model of pair %s: %s; %s", self.pair, problem, self._remedy)
        return ModelMissing(
            f"model_files: this cloud has no whole device model of pair {self.pair!r}; ask its operator, or pull it "
            "from a folder or a URL, with --from"
        )


def _opened(path: Path) -> BinaryIO:
    """Open a regular file, and follow no link: a link could lead to any file of this machine."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelError(f"{path}: it is not a regular file")
    return os.fdopen(descriptor, "rb")
