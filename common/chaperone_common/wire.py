"""Conversion of frames between values and protobuf; no other module knows the generated classes.

Decoding trusts nothing: anything that the specification does not allow raises ProtocolViolation or InvalidRequest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, assert_never

from google.protobuf.message import DecodeError, Message

from chaperone_common.errors import InvalidRequest, ProtocolViolation
from chaperone_common.frames import (
    Capabilities,
    ClientFrame,
    Close,
    Closed,
    Continuation,
    Draft,
    Failure,
    Open,
    Opened,
    QuotaState,
    ServerFrame,
    Verdict,
)
from chaperone_common.pb.chaperone.v1 import supervision_pb2 as pb
from chaperone_common.token_tree import BranchToken
from chaperone_common.types import SamplingParams, SessionId

SERVICE = pb.DESCRIPTOR.services_by_name["SupervisionService"].full_name
SUPERVISE = "Supervise"
GET_CAPABILITIES = "GetCapabilities"

MAX_SESSION_ID_LENGTH = 64
MAX_EOS_TOKEN_IDS = 64
MAX_BRANCH_TOKENS = 4096  # of one Draft; checked here, before the supervisor checks its own lower limit
_RISK_STEPS = 255

M = TypeVar("M", bound=Message)

# google.rpc.Code, by name; copied here so that this package needs no gRPC.
_CODES = {
    "CANCELLED": 1,
    "UNKNOWN": 2,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "OUT_OF_RANGE": 11,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "DATA_LOSS": 15,
    "UNAUTHENTICATED": 16,
}
_NAMES = {code: name for name, code in _CODES.items()}


def encode_client(frame: ClientFrame) -> bytes:
    """Serialise a frame of the device."""
    match frame:
        case Open():
            message = pb.SuperviseRequest(open=_open(frame))
        case Draft():
            message = pb.SuperviseRequest(draft=_draft(frame))
        case Close():
            message = pb.SuperviseRequest(close=pb.Close(start=frame.start, token_ids=frame.token_ids))
        case _:
            assert_never(frame)
    return message.SerializeToString()


def decode_client(data: bytes) -> ClientFrame:
    """Parse a frame of the device; raises ProtocolViolation, or InvalidRequest for bad parameters."""
    message = _parse(pb.SuperviseRequest(), data)
    match message.WhichOneof("frame"):
        case "open":
            return _parse_open(message.open)
        case "draft":
            return _parse_draft(message.draft)
        case "close":
            return Close(message.close.start, tuple(message.close.token_ids))
        case _:
            raise ProtocolViolation("frame: none of open, draft and close is set")


def encode_server(frame: ServerFrame) -> bytes:
    """Serialise a frame of the cloud."""
    match frame:
        case Opened():
            message = pb.SuperviseResponse(
                opened=pb.Opened(
                    prefilled=frame.prefilled,
                    context_tokens=frame.context_tokens,
                    queue_us=frame.queue_us,
                    compute_us=frame.compute_us,
                    max_span_tokens=frame.max_span_tokens,
                )
            )
        case Verdict():
            message = pb.SuperviseResponse(
                verdict=pb.Verdict(
                    revision=frame.revision,
                    position=frame.position,
                    token_id=frame.token_id,
                    deviations=frame.deviations,
                    queue_us=frame.queue_us,
                    compute_us=frame.compute_us,
                    further_token_ids=frame.further_token_ids,
                )
            )
        case Continuation():
            message = pb.SuperviseResponse(
                continuation=pb.Continuation(
                    start=frame.start,
                    token_ids=frame.token_ids,
                    handed_back=frame.handed_back,
                    queue_us=frame.queue_us,
                    compute_us=frame.compute_us,
                )
            )
        case Closed():
            message = pb.SuperviseResponse(
                closed=pb.Closed(deviations=frame.deviations, queue_us=frame.queue_us, compute_us=frame.compute_us)
            )
        case Failure():
            message = pb.SuperviseResponse(
                failure=pb.Failure(
                    code=_CODES.get(frame.status, _CODES["UNKNOWN"]),
                    message=frame.message,
                    retry_after_ms=frame.retry_after_ms,
                )
            )
        case _:
            assert_never(frame)
    return message.SerializeToString()


def decode_server(data: bytes) -> ServerFrame:
    """Parse a frame of the cloud; raises ProtocolViolation."""
    message = _parse(pb.SuperviseResponse(), data)
    match message.WhichOneof("frame"):
        case "opened":
            opened = message.opened
            return Opened(
                opened.prefilled, opened.context_tokens, opened.queue_us, opened.compute_us, opened.max_span_tokens
            )
        case "verdict":
            verdict = message.verdict
            return Verdict(
                verdict.revision,
                verdict.position,
                verdict.token_id,
                tuple(verdict.deviations),
                verdict.queue_us,
                verdict.compute_us,
                tuple(verdict.further_token_ids),
            )
        case "continuation":
            written = message.continuation
            return Continuation(
                written.start, tuple(written.token_ids), written.handed_back, written.queue_us, written.compute_us
            )
        case "closed":
            closed = message.closed
            return Closed(tuple(closed.deviations), closed.queue_us, closed.compute_us)
        case "failure":
            failure = message.failure
            retry = failure.retry_after_ms if failure.HasField("retry_after_ms") else None
            return Failure(_NAMES.get(failure.code, "UNKNOWN"), failure.message, retry)
        case _:
            raise ProtocolViolation("frame: none of opened, verdict, continuation, closed and failure is set")


def encode_capabilities(value: Capabilities) -> bytes:
    """Serialise the answer to GetCapabilities."""
    message = pb.GetCapabilitiesResponse(
        api_version=value.api_version,
        model=value.model,
        tokenizer_digest=value.tokenizer_digest,
        vocabulary_size=value.vocabulary_size,
        context_tokens=value.context_tokens,
        max_span_tokens=value.max_span_tokens,
        model_digest=value.model_digest,
        quotas=[pb.QuotaState(name=quota.name, limit=quota.limit, used=quota.used) for quota in value.quotas],
    )
    return message.SerializeToString()


def decode_capabilities(data: bytes) -> Capabilities:
    """Parse the answer to GetCapabilities; raises ProtocolViolation."""
    message = _parse(pb.GetCapabilitiesResponse(), data)
    return Capabilities(
        message.api_version,
        message.model,
        message.tokenizer_digest,
        message.vocabulary_size,
        message.context_tokens,
        message.max_span_tokens,
        message.model_digest,
        tuple(QuotaState(quota.name, quota.limit, quota.used) for quota in message.quotas),
    )


def encode_capabilities_request() -> bytes:
    """Serialise the request of GetCapabilities."""
    return pb.GetCapabilitiesRequest().SerializeToString()


def _parse(message: M, data: bytes) -> M:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolViolation(f"frame: {len(data)} bytes that are not a {type(message).__name__}: {error}") from None
    return message


def _open(frame: Open) -> pb.Open:
    sampling = frame.sampling
    return pb.Open(
        api_version=frame.api_version,
        session_id=frame.session_id,
        tokenizer_digest=frame.tokenizer_digest,
        sampling=pb.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.top_p < 1 else None,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=sampling.seed,
        ),
        max_new_tokens=frame.max_new_tokens,
        eos_token_ids=frame.eos_token_ids,
        prompt_token_ids=frame.prompt_token_ids,
        committed_token_ids=frame.committed_token_ids,
        model_digest=frame.model_digest,
    )


def _parse_open(message: pb.Open) -> Open:
    if not 0 < len(message.session_id) <= MAX_SESSION_ID_LENGTH:
        raise InvalidRequest(
            f"session_id: {len(message.session_id)} characters; it must have 1 to {MAX_SESSION_ID_LENGTH}"
        )
    if len(message.eos_token_ids) > MAX_EOS_TOKEN_IDS:
        raise InvalidRequest(f"eos_token_ids: {len(message.eos_token_ids)} ids, at most {MAX_EOS_TOKEN_IDS} allowed")
    sampling = message.sampling
    return Open(
        session_id=SessionId(message.session_id),
        tokenizer_digest=message.tokenizer_digest,
        sampling=SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.HasField("top_p") else 1.0,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=sampling.seed,
        ),
        max_new_tokens=message.max_new_tokens,
        eos_token_ids=tuple(message.eos_token_ids),
        prompt_token_ids=tuple(message.prompt_token_ids),
        committed_token_ids=tuple(message.committed_token_ids),
        model_digest=message.model_digest,
        api_version=message.api_version,
    )


def _draft(frame: Draft) -> pb.Draft:
    return pb.Draft(
        revision=frame.revision,
        start=frame.start,
        token_ids=[*frame.token_ids, *(branch.token_id for branch in frame.branches)],
        risks=_pack_risks(frame.risks),
        final_tokens=frame.final_before - frame.start or None,
        continuation_tokens=frame.continuation_tokens,
        deadline_ms=frame.deadline_ms,
        parents=[branch.parent - _first_parent(frame.start) for branch in frame.branches],
    )


def _parse_draft(message: pb.Draft) -> Draft:
    chain = len(message.token_ids) - len(message.parents)
    if chain < 0:
        raise ProtocolViolation(f"parents: {len(message.parents)} for {len(message.token_ids)} tokens")
    if len(message.parents) > MAX_BRANCH_TOKENS:
        raise InvalidRequest(f"parents: {len(message.parents)} branch tokens, at most {MAX_BRANCH_TOKENS} allowed")
    for number, parent in enumerate(message.parents, chain + 1):
        if parent >= number:
            raise ProtocolViolation(f"parents: {parent} does not come before token {number}, its child")
    if message.risks and len(message.risks) != chain:
        raise ProtocolViolation(f"risks: {len(message.risks)} bytes for {chain} tokens")
    return Draft(
        revision=message.revision,
        start=message.start,
        token_ids=tuple(message.token_ids[:chain]),
        risks=tuple(byte / _RISK_STEPS for byte in message.risks),
        final_before=message.start + message.final_tokens,
        continuation_tokens=message.continuation_tokens,
        deadline_ms=message.deadline_ms,
        branches=tuple(
            BranchToken(parent + _first_parent(message.start), token_id)
            for parent, token_id in zip(message.parents, message.token_ids[chain:], strict=True)
        ),
    )


def _first_parent(start: int) -> int:
    """Return the absolute index of the token that a Draft's `parents` call 0: the token before the chain."""
    return start - 1


def _pack_risks(risks: Sequence[float]) -> bytes:
    return bytes(round(min(max(risk, 0.0), 1.0) * _RISK_STEPS) for risk in risks)
