"""Any bytes are a frame, or are refused with a documented error; a frame survives a second trip over the wire."""

from __future__ import annotations

from chaperone_common import wire
from chaperone_common.errors import ChaperoneError
from chaperone_common.frames import FrameLimits

SMALL = FrameLimits(max_message_bytes=512, max_text_tokens=16, max_span_tokens=8, max_eos_token_ids=2)


def check(data: bytes) -> None:
    """Raise AssertionError, or what a decoder must not raise, for bytes that break the rule."""
    for limits in (wire.DEFAULT_LIMITS, SMALL):
        try:
            sent = wire.decode_client(data, limits)
        except ChaperoneError as refusal:
            _check_refusal(refusal)
        else:
            assert wire.decode_client(wire.encode_client(sent), limits) == sent
        try:
            received = wire.decode_server(data, limits)
        except ChaperoneError as refusal:
            _check_refusal(refusal)
        else:
            assert wire.decode_server(wire.encode_server(received), limits) == received
    try:
        capabilities = wire.decode_capabilities(data)
    except ChaperoneError as refusal:
        _check_refusal(refusal)
    else:
        assert wire.decode_capabilities(wire.encode_capabilities(capabilities)) == capabilities
    try:
        request = wire.decode_fetch_model(data)
    except ChaperoneError as refusal:
        _check_refusal(refusal)
    else:
        assert wire.decode_fetch_model(wire.encode_fetch_model(request)) == request
    try:
        content = wire.decode_model_data(data)
    except ChaperoneError as refusal:
        _check_refusal(refusal)
    else:
        assert wire.decode_model_data(wire.encode_model_data(content)) == content


def _check_refusal(refusal: ChaperoneError) -> None:
    field, colon, _ = str(refusal).partition(": ")
    assert colon, refusal
    assert field.replace("_", "").isalnum(), refusal
