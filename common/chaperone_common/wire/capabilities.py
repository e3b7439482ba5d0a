"""The answer to GetCapabilities, between values and protobuf."""

from __future__ import annotations

from chaperone_common.errors import ProtocolViolation
from chaperone_common.frames import Capabilities, QuotaState
from chaperone_common.pb.chaperone.v1 import supervision_pb2 as pb
from chaperone_common.wire.checks import DEFAULT_LIMITS, MAX_CAPABILITIES, check_names, fields, parse


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
        kept_texts=value.kept_texts,
        max_top_logprobs=value.max_top_logprobs,
        projector_digest=value.projector_digest,
        max_encoded_tokens=value.max_encoded_tokens,
        max_beams=value.max_beams,
    )
    return message.SerializeToString()


def decode_capabilities(data: bytes) -> Capabilities:
    """Parse the answer to GetCapabilities; raises ProtocolViolation."""
    fields(data, DEFAULT_LIMITS, ProtocolViolation, MAX_CAPABILITIES)
    message = parse(pb.GetCapabilitiesResponse(), data)
    check_names(message, ProtocolViolation, "model", "tokenizer_digest", "model_digest", "projector_digest")
    if not message.max_span_tokens:
        raise ProtocolViolation("max_span_tokens: 0, so that the cloud reads no token; use another cloud")
    return Capabilities(
        message.api_version,
        message.model,
        message.tokenizer_digest,
        message.vocabulary_size,
        message.context_tokens,
        message.max_span_tokens,
        message.model_digest,
        tuple(QuotaState(quota.name, quota.limit, quota.used) for quota in message.quotas),
        message.kept_texts,
        message.max_top_logprobs if message.HasField("max_top_logprobs") else None,
        message.projector_digest,
        message.max_encoded_tokens,
        message.max_beams,
    )


def encode_capabilities_request() -> bytes:
    """Serialise the request of GetCapabilities."""
    return pb.GetCapabilitiesRequest().SerializeToString()
