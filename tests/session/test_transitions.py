"""The table of transitions is complete, has no dead ends, and equals the diagram."""

from __future__ import annotations

import itertools
import re

import pytest

from chaperone_common.errors import ProtocolViolation
from chaperone_common.session import TRANSITIONS, State, StreamEvent, mermaid, step

TERMINAL = {State.DONE, State.FAILED}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, StreamEvent)))
def test_every_event_has_a_next_state_or_is_refused(state: State, event: StreamEvent) -> None:
    if (state, event) in TRANSITIONS:
        assert step(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(ProtocolViolation, match=re.escape(f"{event} is not allowed")) as caught:
            step(state, event)
        assert state in str(caught.value)


def test_every_state_is_reachable() -> None:
    reached, frontier = {State.NEW}, [State.NEW]
    while frontier:
        source = frontier.pop()
        for target in {target for (state, _), target in TRANSITIONS.items() if state is source} - reached:
            reached.add(target)
            frontier.append(target)
    assert reached == set(State)


def test_every_other_state_leads_to_an_end() -> None:
    for state in set(State) - TERMINAL:
        seen, frontier = {state}, [state]
        while frontier:
            source = frontier.pop()
            fresh = {target for (left, _), target in TRANSITIONS.items() if left is source} - seen
            seen |= fresh
            frontier += fresh
        assert seen >= TERMINAL


def test_no_state_follows_an_end_except_a_new_stream_after_a_failure() -> None:
    exits = {key: target for key, target in TRANSITIONS.items() if key[0] in TERMINAL}
    assert exits == {(State.FAILED, StreamEvent.REOPEN): State.DEVICE_WRITES}


def test_only_a_failure_is_followed_by_a_new_stream() -> None:
    assert {state for (state, event) in TRANSITIONS if event is StreamEvent.REOPEN} == {State.FAILED}


def test_every_event_occurs() -> None:
    assert {event for _, event in TRANSITIONS} == set(StreamEvent)


def test_failure_ends_every_stream_and_nothing_else_fails() -> None:
    assert {state for (state, event) in TRANSITIONS if event is StreamEvent.FAILURE} == set(State) - TERMINAL
    failing = {event for (_, event), target in TRANSITIONS.items() if target is State.FAILED}
    assert failing == {StreamEvent.FAILURE}


def test_the_device_sends_nothing_after_its_close() -> None:
    sends = {StreamEvent.OPEN, StreamEvent.DRAFT, StreamEvent.CLOSE}
    assert not [key for key in TRANSITIONS if key[0] is State.CLOSING and key[1] in sends]


def test_mermaid_draws_exactly_the_table() -> None:
    lines = mermaid().splitlines()
    assert lines[0] == "stateDiagram-v2"
    arrows = set()
    for line in lines[1:]:
        match = re.fullmatch(r"    (\S+) --> (\S+?)(?:: (.+))?", line)
        assert match is not None, line
        labels = match[3].split(" / ") if match[3] else [None]
        arrows |= {(match[1], match[2], label) for label in labels}
    name = {state: "".join(word.capitalize() for word in state.split()) for state in State}
    expected = {(name[source], name[target], str(event)) for (source, event), target in TRANSITIONS.items()}
    ends = {("[*]", name[State.NEW], None), *((name[state], "[*]", None) for state in TERMINAL)}
    assert arrows == expected | ends
