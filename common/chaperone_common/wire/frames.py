"""The frames of a stream, between values and protobuf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from chaperone_common.beams.frames import BeamVerdict, ForestFrame
from chaperone_common.errors import InvalidRequest, ProtocolViolation
from chaperone_common.frames import (
    PREFIX_DIGEST_BYTES,
    ClientFrame,
    Close,
    Closed,
    Continuation,
    Draft,
    Encoded,
    EncodingRequest,
    Failure,
    FrameLimits,
    Open,
    Opened,
    Prefix,
    ServerFrame,
    Verdict,
)
from chaperone_common.pb.chaperone.v1 import supervision_pb2 as pb
from chaperone_common.token_tree import BranchToken
from chaperone_common.types import SamplingParams, SessionId
from chaperone_common.wire.beams import (
    MAX_FOREST_BYTES,
    forest_message,
    parse_forest,
    parse_settings,
    parse_verdict,
    settings_message,
    verdict_message,
)
from chaperone_common.wire.checks import DEFAULT_LIMITS, bounded, check_count, check_names, fields, parse
from chaperone_common.wire.encodings import encoded_message, parse_encoded
from chaperone_common.wire.logprobs import logprobs_message, parse_logprobs

MAX_SESSION_ID_LENGTH = 64  # in characters
MAX_FAILURE_LENGTH = 4096  # characters of a message for people; a longer one is cut
_DRAFT = pb.SuperviseRequest.DRAFT_FIELD_NUMBER
_FOREST = pb.SuperviseRequest.FOREST_FIELD_NUMBER
_RISK_STEPS = 255

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
        case ForestFrame():
            message = pb.SuperviseRequest(forest=forest_message(frame))
        case Close():
            message = pb.SuperviseRequest(close=pb.Close(start=frame.start, token_ids=frame.token_ids))
        case _:
            assert_never(frame)
    return message.SerializeToString()


def decode_client(data: bytes, limits: FrameLimits = DEFAULT_LIMITS) -> ClientFrame:
    """Parse a frame of the device.

    Raises ProtocolViolation, or InvalidRequest for bad parameters and for a frame that is larger than the limits.
    """
    sizes = fields(data, limits, InvalidRequest)
    if (size := sum(length for number, length in sizes if number == _DRAFT)) > limits.max_draft_bytes:
        raise InvalidRequest(
            f"draft: {size} bytes, at most {limits.max_draft_bytes} are allowed for {limits.max_span_tokens} tokens; "
            "send shorter spans"
        )
    if (size := sum(length for number, length in sizes if number == _FOREST)) > MAX_FOREST_BYTES:
        raise InvalidRequest(f"forest: {size} bytes, at most {MAX_FOREST_BYTES} are allowed; draft fewer beams")
    message = parse(pb.SuperviseRequest(), data)
    match message.WhichOneof("frame"):
        case "open":
            return _parse_open(message.open, limits)
        case "draft":
            return _parse_draft(message.draft, limits)
        case "forest":
            return parse_forest(message.forest)
        case "close":
            check_count("token_ids", len(message.close.token_ids), limits.max_text_tokens, "send fewer unread tokens")
            return Close(message.close.start, tuple(message.close.token_ids))
        case _:
            raise ProtocolViolation("frame: none of open, draft, forest and close is set")


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
                    cached_tokens=frame.cached_tokens,
                )
            )
        case Encoded():
            message = pb.SuperviseResponse(encoded=encoded_message(frame))
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
                    logprobs=logprobs_message(frame.logprobs),
                )
            )
        case BeamVerdict():
            message = pb.SuperviseResponse(beams=verdict_message(frame))
        case Continuation():
            message = pb.SuperviseResponse(
                continuation=pb.Continuation(
                    start=frame.start,
                    token_ids=frame.token_ids,
                    handed_back=frame.handed_back,
                    queue_us=frame.queue_us,
                    compute_us=frame.compute_us,
                    logprobs=logprobs_message(frame.logprobs),
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


def decode_server(data: bytes, limits: FrameLimits = DEFAULT_LIMITS) -> ServerFrame:
    """Parse a frame of the cloud; raises ProtocolViolation, also for a frame that is larger than the limits."""
    fields(data, limits, ProtocolViolation)
    message = parse(pb.SuperviseResponse(), data)
    span, text = limits.max_span_tokens, limits.max_text_tokens
    match message.WhichOneof("frame"):
        case "opened":
            opened = message.opened
            return Opened(
                opened.prefilled,
                opened.context_tokens,
                opened.queue_us,
                opened.compute_us,
                opened.max_span_tokens,
                opened.cached_tokens,
            )
        case "encoded":
            return parse_encoded(message.encoded, limits)
        case "verdict":
            verdict = message.verdict
            return Verdict(
                verdict.revision,
                verdict.position,
                verdict.token_id,
                bounded("deviations", verdict.deviations, span),
                verdict.queue_us,
                verdict.compute_us,
                bounded("further_token_ids", verdict.further_token_ids, span),
                parse_logprobs(verdict.logprobs, span + 1),
            )
        case "beams":
            return parse_verdict(message.beams)
        case "continuation":
            written = message.continuation
            token_ids = bounded("token_ids", written.token_ids, text)
            return Continuation(
                written.start,
                token_ids,
                written.handed_back,
                written.queue_us,
                written.compute_us,
                parse_logprobs(written.logprobs, len(token_ids)),
            )
        case "closed":
            closed = message.closed
            return Closed(bounded("deviations", closed.deviations, text), closed.queue_us, closed.compute_us)
        case "failure":
            failure = message.failure
            retry = failure.retry_after_ms if failure.HasField("retry_after_ms") else None
            return Failure(_NAMES.get(failure.code, "UNKNOWN"), failure.message[:MAX_FAILURE_LENGTH], retry)
        case _:
            raise ProtocolViolation(
                "frame: none of opened, encoded, verdict, beams, continuation, closed and failure is set"
            )


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
        prefix=_prefix(frame.prefix),
        top_logprobs=frame.top_logprobs,
        encoding=_encoding(frame.encoding),
        beams=settings_message(frame.beams),
    )


def _encoding(request: EncodingRequest | None) -> pb.EncodingRequest | None:
    if request is None:
        return None
    return pb.EncodingRequest(projector_digest=request.projector_digest, start=request.start)


def _parse_encoding(message: pb.Open) -> EncodingRequest | None:
    if not message.HasField("encoding"):
        return None
    check_names(message.encoding, InvalidRequest, "projector_digest")
    return EncodingRequest(message.encoding.projector_digest, message.encoding.start)


def _prefix(prefix: Prefix | None) -> pb.Prefix | None:
    if prefix is None:
        return None
    return pb.Prefix(session_id=prefix.session_id, length=prefix.length, digest=prefix.digest)


def _parse_prefix(message: pb.Open) -> Prefix | None:
    if not message.HasField("prefix"):
        return None
    prefix = message.prefix
    _check_session_id("prefix.session_id", prefix.session_id)
    if not prefix.length or len(prefix.digest) != PREFIX_DIGEST_BYTES:
        raise InvalidRequest(
            f"prefix: length {prefix.length}, and a digest of {len(prefix.digest)} bytes; refer to at least one token, "
            f"by a digest of {PREFIX_DIGEST_BYTES} bytes"
        )
    return Prefix(SessionId(prefix.session_id), prefix.length, prefix.digest)


def _check_session_id(field: str, session_id: str) -> None:
    if not 0 < len(session_id) <= MAX_SESSION_ID_LENGTH:
        raise InvalidRequest(f"{field}: {len(session_id)} characters; it must have 1 to {MAX_SESSION_ID_LENGTH}")


def _parse_open(message: pb.Open, limits: FrameLimits) -> Open:
    _check_session_id("session_id", message.session_id)
    check_names(message, InvalidRequest, "tokenizer_digest", "model_digest")
    check_count("eos_token_ids", len(message.eos_token_ids), limits.max_eos_token_ids, "send the most likely ones")
    text = len(message.prompt_token_ids) + len(message.committed_token_ids)
    check_count("prompt_token_ids", text, limits.max_text_tokens, "shorten the prompt, or resume from less text")
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
        prefix=_parse_prefix(message),
        top_logprobs=message.top_logprobs if message.HasField("top_logprobs") else None,
        encoding=_parse_encoding(message),
        beams=parse_settings(message, limits),
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


def _parse_draft(message: pb.Draft, limits: FrameLimits) -> Draft:
    if len(message.token_ids) > limits.max_span_tokens:
        raise InvalidRequest(
            f"token_ids: {len(message.token_ids)} in one Draft, at most {limits.max_span_tokens} are allowed, branches "
            "included; send shorter spans"
        )
    chain = len(message.token_ids) - len(message.parents)
    if chain < 0:
        raise ProtocolViolation(f"parents: {len(message.parents)} for {len(message.token_ids)} tokens")
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
