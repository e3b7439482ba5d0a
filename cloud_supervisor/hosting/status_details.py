"""A Failure as a gRPC status. Its details say when to try again, and which quota is used up, as `google.rpc.Status`."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from grpc_status import rpc_status

from chaperone_common.frames import Failure
from chaperone_common.wire import RETRY_AFTER


def trailing_metadata(failure: Failure) -> tuple[tuple[str, str | bytes], ...]:
    """Return trailing metadata with a Failure's RetryInfo and QuotaFailure, where it has them."""
    details = []
    if failure.retry_after_ms is not None:
        details.append(_packed(RetryInfo(retry_delay=_duration(failure.retry_after_ms))))
    if failure.quota:
        violation = QuotaFailure.Violation(subject=failure.quota, description=failure.message)
        details.append(_packed(QuotaFailure(violations=[violation])))
    code: int = status_code(failure).value[0]
    status = rpc_status.to_status(Status(code=code, message=failure.message, details=details))
    metadata: list[tuple[str, str | bytes]] = [*status.trailing_metadata]
    if failure.retry_after_ms is not None:  # the same as in the details, for clients without google.rpc
        metadata.append((RETRY_AFTER, str(failure.retry_after_ms)))
    return tuple(metadata)


def status_code(failure: Failure) -> StatusCode:
    """Return gRPC's code of a Failure."""
    code: StatusCode = getattr(StatusCode, failure.status)
    return code


def _duration(milliseconds: int) -> Duration:
    return Duration(seconds=milliseconds // 1000, nanos=milliseconds % 1000 * 1_000_000)


def _packed(message: RetryInfo | QuotaFailure) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
