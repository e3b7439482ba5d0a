"""Make the inputs with which fuzzing begins, from valid frames and known attacks: `python -m tests.fuzz.corpus`.

Inputs that fuzzing found are committed next to them. Their names begin with `found-`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from chaperone_common import wire
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
    ServerFrame,
    Verdict,
)
from chaperone_common.token_tree import BranchToken
from chaperone_common.types import SamplingParams, SessionId
from tests.fuzz.cloud_session import bytes_of

CORPUS = Path(__file__).parent / "corpus"
U32 = 2**32 - 1

OPEN = Open(SessionId("s"), "", SamplingParams(), 20, (0,), (1, 2))
RESUMED = Open(
    SessionId("0123456789abcdef"),
    "sha256:" + "0" * 64,
    SamplingParams(0.7, 0.9, 40, 0.05, 2**64 - 1),
    30,
    (0, 7),
    (1, 2, 3),
    (4, 5),
    model_digest="sha256:" + "1" * 64,
)
TREE = Draft(0, 2, (1, 2), (0.5, 0.0), 2, 3, 900, (BranchToken(1, 2), BranchToken(4, 3), BranchToken(2, 1)))

CLIENT: Mapping[str, ClientFrame] = {
    "open": OPEN,
    "open-resumed": RESUMED,
    "draft": Draft(0, 2, (1, 2, 3), (), 2),
    "draft-tree": TREE,
    "draft-audit": Draft(1, 70_000, (150_000,) * 8, (0.1,) * 8, 70_009),
    "draft-empty": Draft(0, 2, (), (), 2, 100),
    "draft-largest": Draft(U32, U32, (U32,), (1.0,), 2 * U32, U32, U32, (BranchToken(U32 - 1, U32),)),
    "close": Close(2, (1, 2)),
    "close-empty": Close(2, ()),
}
SERVER: Mapping[str, ServerFrame] = {
    "opened": Opened(True, 4096, 5, 6, 256),
    "verdict": Verdict(1, 5, 9, (3, 4), 10, 2**64 - 1, (1, 2)),
    "continuation": Continuation(5, (1, 2, 3), True, 1, 2),
    "closed": Closed((3, 4)),
    "failure": Failure("RESOURCE_EXHAUSTED", "sessions: 256 are open", 1000),
}
ATTACKS: Mapping[str, bytes] = {
    "many-frames": b"\x0a\x00\x12\x00" * 20,
    "merged-frames": b"\x12\x02\x08\x01\x12\x02\x10\x05",
    "unknown-fields": b"\x78\x01\x7a\x02hi" + wire.encode_client(Close(2, (1,))),
    "groups": b"\x7b" * 8 + b"\x7c" * 8,
    "nested-groups": b"\x1a\xd0\x01" + b"\x7b" * 104 + b"\x7c" * 104,
    "long-varint": b"\x12\x0c\x08" + b"\xff" * 10 + b"\x01",
    "cut-off": wire.encode_client(RESUMED)[:40],
    "unpacked": b"\x12\x08\x10\x02" + b"\x18\x01" * 3,
    "not-utf8": b"\x0a\x04\x12\x02\xff\xfe",
    "early-parent": wire.encode_client(Draft(0, 0, (1,), (), 0, branches=(BranchToken(-1, 2),))),
}
STREAMS: Mapping[str, list[ClientFrame | None]] = {
    "exact": [OPEN, Draft(0, 2, (1, 2, 3), (), 2), Draft(1, 3, (2, 3), (), 3), Close(5, ())],
    "pipelined": [OPEN, Draft(0, 2, (1, 2), (), 2), Draft(0, 4, (3, 4), (), 4), Draft(0, 6, (1,), (), 6)],
    "gated": [OPEN, Draft(0, 2, (1, 1, 1), (0.1,) * 3, 4), Draft(0, 5, (2, 3), (), 8), Close(6, (3, 4))],
    "tree": [OPEN, TREE, Draft(1, 4, (1,), (), 4, branches=(BranchToken(3, 2),)), Close(4, ())],
    "takeover": [OPEN, Draft(0, 2, (), (), 2, 9), None, None, Draft(0, 5, (4,), (), 5), Close(5, ())],
    "whole-takeover": [OPEN, Draft(0, 2, (), (), 2, U32), *[None] * 30, Close(20, ())],
    "resumed": [RESUMED, Draft(0, 5, (1, 2), (), 5), Close(5, (1,))],
    "replayed": [OPEN, *[Draft(0, 2, (1, 2), (), 2)] * 3, Close(2, (1, 2))],
    "to-the-limit": [OPEN, Draft(0, 2, (1, 2, 3, 4, 5) * 4, (), 2), Close(2, (1,) * 20)],
    "second-open": [OPEN, OPEN],
    "draft-first": [Draft(0, 2, (1,), (), 2)],
    "after-the-close": [OPEN, Close(2, ()), Draft(0, 2, (1,), (), 2)],
}


def files() -> dict[str, bytes]:
    """Return the inputs by their path in the corpus."""
    frames = {name: wire.encode_client(frame) for name, frame in CLIENT.items()}
    frames |= {name: wire.encode_server(frame) for name, frame in SERVER.items()}
    frames["capabilities"] = wire.encode_capabilities(Capabilities(1, "model", "sha256:0", 50, 4096, 256, "sha256:1"))
    frames |= ATTACKS
    found = {f"frame_decoder/{name}.bin": data for name, data in frames.items()}
    found |= {f"cloud_session/{name}.bin": bytes_of(stream, len(name)) for name, stream in STREAMS.items()}
    return found


def main() -> None:
    """Write the corpus."""
    for name, data in files().items():
        path = CORPUS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
