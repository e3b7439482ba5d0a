"""The states of one stream and the events that each allows, as data.

Both ends run the same table. An end makes a step when it sends a frame, and when it receives one. Frames that cross a
Close on the wire are allowed while closing, and ignored. Only the device can leave a failure: it opens a new stream,
and the cloud begins a new session for it.
"""

from __future__ import annotations

from enum import StrEnum

from chaperone_common.errors import ProtocolViolation


class State(StrEnum):
    """The state of a stream: whose turn it is."""

    NEW = "new"
    DEVICE_WRITES = "device writes"
    CLOUD_WRITES = "cloud writes"
    CLOSING = "closing"
    DONE = "done"
    FAILED = "failed"


class StreamEvent(StrEnum):
    """An event that changes the state of a stream; most are frames."""

    OPEN = "Open"
    OPENED = "Opened"
    DRAFT = "Draft"
    VERDICT = "Verdict"
    TAKEOVER = "Verdict that begins a takeover"
    CONTINUATION = "Continuation"
    HAND_BACK = "Continuation that hands back"
    CLOSE = "Close"
    CLOSED = "Closed"
    FAILURE = "Failure"
    REOPEN = "Open of the same session on a new stream"


_CROSSING = (
    StreamEvent.OPENED,
    StreamEvent.VERDICT,
    StreamEvent.TAKEOVER,
    StreamEvent.CONTINUATION,
    StreamEvent.HAND_BACK,
)

TRANSITIONS: dict[tuple[State, StreamEvent], State] = {
    (State.NEW, StreamEvent.OPEN): State.DEVICE_WRITES,
    (State.DEVICE_WRITES, StreamEvent.OPENED): State.DEVICE_WRITES,
    (State.DEVICE_WRITES, StreamEvent.DRAFT): State.DEVICE_WRITES,
    (State.DEVICE_WRITES, StreamEvent.VERDICT): State.DEVICE_WRITES,
    (State.DEVICE_WRITES, StreamEvent.TAKEOVER): State.CLOUD_WRITES,
    (State.DEVICE_WRITES, StreamEvent.CLOSE): State.CLOSING,
    (
        State.CLOUD_WRITES,
        StreamEvent.OPENED,
    ): State.CLOUD_WRITES,  # sent before the cloud read the Draft that it follows
    (State.CLOUD_WRITES, StreamEvent.DRAFT): State.CLOUD_WRITES,
    (State.CLOUD_WRITES, StreamEvent.CONTINUATION): State.CLOUD_WRITES,
    (State.CLOUD_WRITES, StreamEvent.HAND_BACK): State.DEVICE_WRITES,
    (State.CLOUD_WRITES, StreamEvent.CLOSE): State.CLOSING,
    **{(State.CLOSING, crossing): State.CLOSING for crossing in _CROSSING},
    (State.CLOSING, StreamEvent.CLOSED): State.DONE,
    (State.FAILED, StreamEvent.REOPEN): State.DEVICE_WRITES,
    **{
        (state, StreamEvent.FAILURE): State.FAILED
        for state in (State.NEW, State.DEVICE_WRITES, State.CLOUD_WRITES, State.CLOSING)
    },
}


def step(state: State, event: StreamEvent) -> State:
    """Return the next state. Raises ProtocolViolation if the table has none."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise ProtocolViolation(f"{event} is not allowed while the stream is in state {state!r}") from None


def mermaid() -> str:
    """Return the table as a Mermaid state diagram."""
    names = {state: state.name.title().replace("_", "") for state in State}
    lines = ["stateDiagram-v2", f"    [*] --> {names[State.NEW]}"]
    arrows: dict[tuple[State, State], list[str]] = {}
    for (source, event), target in TRANSITIONS.items():
        arrows.setdefault((source, target), []).append(str(event))
    for (source, target), labels in arrows.items():
        lines.append(f"    {names[source]} --> {names[target]}: {' / '.join(labels)}")
    lines += [f"    {names[state]} --> [*]" for state in (State.DONE, State.FAILED)]
    return "\n".join(lines)
