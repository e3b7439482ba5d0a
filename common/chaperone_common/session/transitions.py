"""The states of one stream and what may happen in each, as data.

Both ends run the same table, each at its own time: an end steps when it sends a frame and when it receives one.
What crosses a Close on the wire is still allowed while closing, and ignored. The only way out of a failure is the
device's: a new stream, and with it a new session on the cloud's end.
"""

from __future__ import annotations

from enum import StrEnum

from chaperone_common.errors import ProtocolViolation


class State(StrEnum):
    """Whose turn it is."""

    NEW = "new"
    DEVICE_WRITES = "device writes"
    CLOUD_WRITES = "cloud writes"
    CLOSING = "closing"
    DONE = "done"
    FAILED = "failed"


class StreamEvent(StrEnum):
    """What moves a stream on; most are frames."""

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
    """The next state; raises ProtocolViolation where the table has none."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise ProtocolViolation(f"{event} is not allowed while the stream is in state {state!r}") from None


def mermaid() -> str:
    """The table as a Mermaid state diagram."""
    names = {state: state.name.title().replace("_", "") for state in State}
    lines = ["stateDiagram-v2", f"    [*] --> {names[State.NEW]}"]
    arrows: dict[tuple[State, State], list[str]] = {}
    for (source, event), target in TRANSITIONS.items():
        arrows.setdefault((source, target), []).append(str(event))
    for (source, target), labels in arrows.items():
        lines.append(f"    {names[source]} --> {names[target]}: {' / '.join(labels)}")
    lines += [f"    {names[state]} --> [*]" for state in (State.DONE, State.FAILED)]
    return "\n".join(lines)
