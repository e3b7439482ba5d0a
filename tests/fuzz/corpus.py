"""Make the inputs with which fuzzing begins, from valid frames and known attacks: `python -m tests.fuzz.corpus`.

Inputs that fuzzing found are committed next to them. Their names begin with `found-`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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
from chaperone_common.logprobs import ChoiceLogprobs
from chaperone_common.token_tree import BranchToken
from chaperone_common.types import SamplingParams, SessionId
from tests.fuzz.cloud_session import Moves

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
PROBABLE = ChoiceLogprobs(-0.5, ((7, -0.25), (150_000, -9999.0)))
TREE = Draft(0, 2, (1, 2), (0.5, 0.0), 2, 3, 900, (BranchToken(1, 2), BranchToken(4, 3), BranchToken(2, 1)))

CLIENT: Mapping[str, ClientFrame] = {
    "open": OPEN,
    "open-resumed": RESUMED,
    "open-logprobs": replace(OPEN, top_logprobs=20),
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
    "verdict-logprobs": Verdict(1, 9, 7, further_token_ids=(8,), logprobs=(PROBABLE, PROBABLE)),
    "continuation-logprobs": Continuation(9, (7,), True, logprobs=(PROBABLE,)),
    "too-many-logprobs": Continuation(9, (7,), True, logprobs=(PROBABLE, PROBABLE)),
    "positive-logprob": Verdict(1, 9, 7, logprobs=(ChoiceLogprobs(0.5),)),
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
FAR = 127  # an offset of 2**31
STREAMS: Mapping[str, Moves] = {
    "exact": Moves(1).draft(0, 1, 2, 3).draft(0, 2, 3).draft(0, 1).close(0),
    "pipelined": Moves(2).draft(0, 1, 2).draft(0, 3, 4).draft(-1, 1, 2),
    "stale": Moves(3).draft(0, 4, 4, 4).draft(0, 1, revision=-1).draft(0, 1),
    "gated": Moves(4).draft(0, 1, 1, 1, final=2).draft(0, 2, 3, final=3).close(-2, 3, 4),
    "audit": Moves(5).draft(0, 1, 1, 1, final=4).draft(0, 1, 1, final=3).close(0, 1, 2),
    "tree": Moves(6).draft(0, 1, 2, branches=[(0, 2), (1, 3), (2, 1), (3, 4)]).draft(0, 1, branches=[(0, 2)]),
    "takeover": Moves(7).draft(0, more=9).writes(3).draft(0, 4).draft(-1, 2, more=2).writes(2).close(0),
    "whole-takeover": Moves(8, limit=39).draft(0, more=11).writes(11).draft(0, more=11).writes(11).close(-3, 1, 2, 3),
    "resumed": Moves(9, committed=[4, 5], eos=[0, 7]).draft(0, 1, 2).draft(-3, 4).close(0, 1),
    "resumed-whole": Moves(10, limit=2, committed=[4, 5]).draft(-1, 5).close(0),
    "resumed-beyond": Moves(11, limit=1, committed=[4, 5]).draft(0, 1).close(0),
    "replayed": Moves(12).draft(0, 1, 2).draft(-1, 2).draft(-1, 2).close(-1, 2),
    "to-the-limit": Moves(13, limit=5).draft(0, 1, 2, 3, 4, 5).draft(-1, 5).close(-1, 5),
    "beyond-the-limit": Moves(14, limit=5).draft(0, *[1] * 6),
    "branch-beyond-the-limit": Moves(15, limit=2).draft(0, 1, 2, branches=[(2, 3), (3, 4)]),
    "beyond-the-text": Moves(16).draft(1, 1),
    "far-beyond": Moves(17).draft(FAR, 1, branches=[(0, 1)]),
    "before-the-text": Moves(18).draft(-2, 1),
    "beyond-the-vocabulary": Moves(19).draft(0, 1, 50),
    "end-of-text": Moves(20, eos=[1, 2]).draft(0, 1).draft(0, 3, more=3).writes(1).close(0),
    "later-revision": Moves(21).draft(0, 1, revision=1),
    "final-beyond": Moves(22).draft(0, 1, final=3),
    "after-the-close": Moves(23).close(0).draft(0, 1),
    "second-open": Moves(24).raw(OPEN),
    "on-the-wire": Moves(25).raw(Draft(0, 2, (1, 2, 3), (0.5,) * 3, 2, 4, 900)).raw(Close(4, (3,))),
}


def files() -> dict[str, bytes]:
    """Return the inputs by their path in the corpus."""
    frames = {name: wire.encode_client(frame) for name, frame in CLIENT.items()}
    frames |= {name: wire.encode_server(frame) for name, frame in SERVER.items()}
    frames["capabilities"] = wire.encode_capabilities(Capabilities(1, "model", "sha256:0", 50, 4096, 256, "sha256:1"))
    frames |= ATTACKS
    found = {f"frame_decoder/{name}.bin": data for name, data in frames.items()}
    found |= {f"cloud_session/{name}.bin": stream.data for name, stream in STREAMS.items()}
    return found


def main() -> None:
    """Write the corpus."""
    for name, data in files().items():
        path = CORPUS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
