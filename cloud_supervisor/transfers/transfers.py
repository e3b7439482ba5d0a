"""Transfers: one file each, in pieces, within the limits of the cloud and of the tenant."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncGenerator, Callable
from typing import BinaryIO

from chaperone_common.clock import Clock
from chaperone_common.errors import CloudUnavailable, InvalidRequest, PeerMismatch, QuotaExceeded
from chaperone_common.frames import FetchModel
from chaperone_common.wire import MAX_MODEL_DATA_BYTES
from cloud_supervisor.admission import Admission
from cloud_supervisor.caller import Caller
from cloud_supervisor.transfers.device_model import DeviceModel

_CONTINUE_MS = 100  # after which a device continues a transfer that this cloud has ended
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Transfers:
    """Sends the device's model of one pair."""

    def __init__(
        self,
        model: DeviceModel,
        admission: Admission,
        clock: Clock,
        *,
        max_transfer_s: float,
        draining: Callable[[], bool] = lambda: False,
    ) -> None:
        """End a transfer after `max_transfer_s`, or when `draining` returns True; its device continues it."""
        self._model = model
        self._admission = admission
        self._clock = clock
        self._max_transfer_s = max_transfer_s
        self._draining = draining

    def begin(self, caller: Caller) -> Callable[[], None]:
        """Count a transfer, and return the function that ends it, which may be called again.

        Raises PermissionDenied, Overloaded or QuotaExceeded.
        """
        # A refused transfer takes nothing from the stream rate: waiting devices would use it up, and texts be refused.
        self._admission.begin_transfer(caller.tenant)
        try:
            self._admission.begin_stream(caller.tenant)
        except QuotaExceeded:
            self._admission.end_transfer(caller.tenant)
            raise
        ended = False

        def end() -> None:
            nonlocal ended
            if not ended:
                ended = True
                self._admission.end_transfer(caller.tenant)

        return end

    async def pieces(self, request: FetchModel, caller: Caller) -> AsyncGenerator[bytes, None]:
        """Yield the bytes that a request asks for, in pieces.

        Raises InvalidRequest, PeerMismatch or ModelMissing for a request that cannot be served, and CloudUnavailable
        where the device has to continue by another request.
        """
        began_s = self._clock.now()
        file, left = await asyncio.to_thread(self._open, request)
        with file:
            while left:
                self._refuse_to_go_on(began_s)
                piece = await asyncio.to_thread(file.read, min(left, MAX_MODEL_DATA_BYTES))
                if not piece:
                    raise CloudUnavailable("model: the file became shorter; try again", retry_after_ms=_CONTINUE_MS)
                self._admission.charge_transfer(caller.tenant, len(piece))
                left -= len(piece)
                yield piece

    def _open(self, request: FetchModel) -> tuple[BinaryIO, int]:
        """Return the file at the offset of the request, and the number of bytes to send."""
        if request.pair != self._model.pair:
            raise PeerMismatch(
                f"pair: this cloud serves {self._model.pair!r}, not {request.pair!r}; give --pair {self._model.pair}"
            )
        content, manifest = self._model.manifest()
        if not request.file:
            _check_offset(request.offset, len(content))
            return io.BytesIO(content[request.offset :]), len(content) - request.offset
        expected = manifest.files.get(request.file)
        if expected is None:
            raise InvalidRequest("file: the manifest names no such file; send a name that it has")
        if request.sha256 != expected.sha256:
            problem = (
                "is another file here now" if _SHA256.fullmatch(request.sha256) else "needs the manifest's SHA-256"
            )
            raise PeerMismatch(f"sha256: {request.file} {problem}; fetch the manifest again")
        _check_offset(request.offset, expected.bytes)
        file = self._model.open(request.file, expected)
        file.seek(request.offset)
        return file, expected.bytes - request.offset

    def _refuse_to_go_on(self, began_s: float) -> None:
        if self._draining():
            raise CloudUnavailable("the cloud is shutting down; continue elsewhere", retry_after_ms=_CONTINUE_MS)
        if self._clock.now() - began_s > self._max_transfer_s:
            raise CloudUnavailable(
                f"max_stream_s: the transfer took more than {self._max_transfer_s:g} s; continue it",
                retry_after_ms=_CONTINUE_MS,
            )


def _check_offset(offset: int, size: int) -> None:
    if offset > size:
        raise InvalidRequest(f"offset: {offset} is after the end of the file, at {size}; begin at 0")
