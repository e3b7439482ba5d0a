"""The bounds against two independent models: all schedules of small cases by ticks, and replayed strategies."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulation.bounds import Costs, clairvoyant_ms, physical_floor_ms, streaming_ms
from chaperone_common.errors import ConfigError

ONE_CORE_EACH = Costs(22.5, 100.0, 310.0, {1: 310, 2: 310, 4: 323, 8: 380, 16: 500, 32: 747})


# --- Every schedule -------------------------------------------------------------------------------------------------


class State(NamedTuple):
    """The complete state at a whole tick; the future depends on nothing else."""

    known: int = 0  # tokens that the device has, drafted or received
    drafting: int = 0  # ticks left of its step
    confirmed: int = 0  # tokens whose confirmation it has received
    judged: int = 0
    reading: tuple[int, int] = (0, 0)  # ticks left, and the tokens judged then
    up: frozenset[tuple[int, int]] = frozenset()  # drafts on their way: ticks left, position
    down: frozenset[tuple[int, int]] = frozenset()  # answers on their way: ticks left, tokens judged
    arrived: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Small:
    agrees: tuple[bool, ...]
    step: int
    way: int
    stream: int
    verify: tuple[int, ...]  # index 0 is one token
    takeover: bool = True

    @property
    def costs(self) -> Costs:
        return Costs(self.step, 2 * self.way, self.stream, lambda tokens: self.verify[tokens - 1])

    def least_ticks(self) -> int:
        """Return the least ticks of all schedules: at each tick the device may start a step, the cloud any forward."""
        moments = {State()}
        for tick in itertools.count():
            if any(moment.confirmed == len(self.agrees) for moment in moments):
                return tick
            started = {after for moment in moments for after in self._starts(moment)}
            moments = {self._tick(moment) for moment in started}
        raise AssertionError

    def _starts(self, moment: State) -> Iterator[State]:
        for after in self._cloud_starts(moment):
            yield after
            if not after.drafting and after.known < len(self.agrees):
                yield after._replace(drafting=self.step)

    def _cloud_starts(self, moment: State) -> Iterator[State]:
        yield moment
        if moment.reading[0]:
            return
        first, total = moment.judged, len(self.agrees)
        if first < total and self.takeover:
            yield moment._replace(reading=(self.stream, first + 1))
        for positions in range(1, total - first + 1):
            if positions == 1:
                after_draft = first - 1 in moment.arrived and self.agrees[first - 1]
                feasible = self.takeover or first in moment.arrived or after_draft
            else:
                feasible = all(i in moment.arrived and self.agrees[i] for i in range(first, first + positions - 1))
            if feasible:
                for tokens in range(positions, total + 1):  # some tokens may be useless
                    yield moment._replace(reading=(self.verify[tokens - 1], first + positions))

    def _tick(self, moment: State) -> State:
        drafting, known, reading = moment.drafting, moment.known, moment.reading
        up = {(left - 1, position) for left, position in moment.up}
        down = {(left - 1, judged) for left, judged in moment.down}
        judged = moment.judged
        if drafting:
            drafting -= 1
            if not drafting:
                up.add((self.way, known))
                known += self.agrees[known]
        if reading[0]:
            reading = (reading[0] - 1, reading[1])
            if not reading[0]:
                judged = reading[1]
                down.add((self.way, judged))
        arrived = {position for left, position in up if left == 0} | moment.arrived
        confirmed = max([moment.confirmed, *(number for left, number in down if left == 0)])
        if confirmed > known:
            known, drafting = confirmed, 0
        return State(
            known,
            drafting,
            confirmed,
            judged,
            reading if reading[0] else (0, 0),
            frozenset(message for message in up if message[0]),
            frozenset(message for message in down if message[0] and message[1] > confirmed),
            frozenset(position for position in arrived if position >= judged - 1),
        )


def small_cases(count: int) -> list[Small]:
    random = Random(8)
    cases = []
    for _ in range(count):
        n = random.randint(1, 5)
        cases.append(
            Small(
                agrees=tuple(random.random() < 0.75 for _ in range(n)),
                step=random.randint(1, 3),
                way=random.randint(0, 3),
                stream=random.randint(1, 5),
                verify=tuple(random.randint(1, 7) for _ in range(n)),
                takeover=random.random() < 0.7,
            )
        )
    return cases


@pytest.mark.parametrize("case", small_cases(60))
def test_the_bound_equals_the_fastest_schedule(case: Small) -> None:
    assert clairvoyant_ms(case.agrees, case.costs, takeover=case.takeover) == case.least_ticks()


# --- Strategies without knowledge of the future ---------------------------------------------------------------------


@dataclass
class Replay:
    """Spans of `span` tokens, up to a number in flight, and tokens that the cloud writes after an override."""

    agrees: Sequence[bool]
    costs: Costs
    span: int
    in_flight: int
    takeover: int
    now: float = 0.0
    events: list[tuple[float, int, str, tuple[int, ...]]] = field(default_factory=list)
    order: Iterator[int] = field(default_factory=itertools.count)
    # the device: its tokens, sent tokens, the position where it went astray, and its rewinds
    length: int = 0
    sent: int = 0
    astray: int | None = None
    chain: int = 0
    waiting: int = 0
    drafting: bool = False
    # the cloud: spans that wait (start, end, first wrong position, chain), and tokens judged
    spans: list[tuple[int, int, int, int]] = field(default_factory=list)
    judged: int = 0
    writes: int = 0
    busy: bool = False

    def run(self) -> float:
        n = len(self.agrees)
        self._device()
        while True:
            self.now, _, kind, data = heapq.heappop(self.events)
            match kind:
                case "drafted" if data[0] != self.chain:
                    pass  # of an abandoned text
                case "drafted":
                    self.drafting = False
                    if self.astray is None and not self.agrees[self.length]:
                        self.astray = self.length
                    self.length += 1
                case "span":
                    self.spans.append((data[0], data[1], data[2], data[3]))
                    self.writes = 0
                case "read":
                    self.busy = False
                    self.judged = data[0]
                    self._later(self.costs.rtt_ms / 2, "confirmed", self.judged, data[1])
                case _:
                    if data[0] == n:
                        return self.now
                    self._confirmed(*data)
            self._device()
            self._cloud()

    def _later(self, delay: float, kind: str, *data: int) -> None:
        heapq.heappush(self.events, (self.now + delay, next(self.order), kind, data))

    def _confirmed(self, judged: int, chain: int) -> None:
        if judged > self.length or (self.astray is not None and judged > self.astray):
            self.length = self.sent = judged
            self.astray, self.drafting, self.waiting = None, False, 0
            self.chain += 1
        elif chain == self.chain:
            self.waiting -= 1

    def _device(self) -> None:
        n = len(self.agrees)
        unsent = self.length - self.sent
        if self.waiting < self.in_flight and (unsent >= self.span or (unsent and self.length == n)):
            wrong = n + 1 if self.astray is None else self.astray
            self._later(self.costs.rtt_ms / 2, "span", self.sent, self.length, wrong, self.chain)
            self.sent, self.waiting = self.length, self.waiting + 1
        if not self.drafting and self.length < n and self.length - self.sent < self.span:
            self.drafting = True
            self._later(self.costs.draft_ms, "drafted", self.chain)

    def _cloud(self) -> None:
        n = len(self.agrees)
        while self.spans and not self.busy:
            start, end, wrong, chain = self.spans.pop(0)
            if start > self.judged or wrong < self.judged:
                continue  # it follows a refused token; the refusal is on its way to the device
            if end < self.judged:
                self._later(self.costs.rtt_ms / 2, "confirmed", self.judged, chain)
                continue
            reads = min(end + 1, n) - self.judged
            after = min(wrong, end, n - 1) + 1
            self.writes = self.takeover if wrong < end else 0
            self.busy = True
            self._later(self._verify_ms(reads), "read", after, chain)
        if not self.busy and self.writes and self.judged < n:
            self.writes -= 1
            self.busy = True
            self._later(self.costs.stream_ms, "read", self.judged + 1, -1)

    def _verify_ms(self, tokens: int) -> float:
        return float(self.costs.verify_ms(tokens)) if callable(self.costs.verify_ms) else self.costs.verify_ms[tokens]


times = st.floats(0.5, 400, allow_nan=False)
texts = st.lists(st.booleans(), min_size=1, max_size=24) | st.lists(
    st.sampled_from([True] * 9 + [False]), min_size=1, max_size=24
)


@st.composite
def costs_of(draw: st.DrawFn) -> Costs:
    first, each = draw(times), draw(st.floats(0, 60))
    return Costs(draw(st.floats(0, 400)), draw(st.floats(0, 400)), draw(times), lambda tokens: first + each * tokens)


@given(texts, costs_of(), st.integers(1, 8), st.integers(1, 4), st.integers(0, 4))
def test_no_fixed_strategy_is_faster(
    agrees: list[bool], costs: Costs, span: int, in_flight: int, takeover: int
) -> None:
    replayed = Replay(agrees, costs, span, in_flight, takeover).run()
    assert clairvoyant_ms(agrees, costs, takeover=takeover > 0) <= replayed * (1 + 1e-9)
    assert clairvoyant_ms(agrees, costs) <= replayed * (1 + 1e-9)


@given(texts, costs_of())
def test_the_bounds_are_in_order(agrees: list[bool], costs: Costs) -> None:
    slack = 1 + 1e-9
    with_takeover = clairvoyant_ms(agrees, costs)
    assert physical_floor_ms(len(agrees), costs) <= with_takeover * slack
    assert with_takeover <= clairvoyant_ms(agrees, costs, takeover=False) * slack
    assert clairvoyant_ms(agrees, costs, skipping=True) <= with_takeover * slack
    assert with_takeover <= streaming_ms(len(agrees), costs) * slack


@given(texts, costs_of(), st.integers(0, 23))
def test_one_more_agreement_never_costs_time(agrees: list[bool], costs: Costs, position: int) -> None:
    better = [*agrees]
    better[position % len(agrees)] = True
    assert clairvoyant_ms(better, costs) <= clairvoyant_ms(agrees, costs) * (1 + 1e-9)


# --- By hand --------------------------------------------------------------------------------------------------------


def test_one_span_and_its_bonus_take_one_round_trip() -> None:
    costs = Costs(10, 100, 1000, {1: 50, 4: 50})
    assert clairvoyant_ms([True, True, True, False], costs) == 3 * 10 + 100 + 50


def test_a_chain_starts_when_the_override_arrives() -> None:
    costs = Costs(10, 100, 1000, {1: 50, 4: 50})
    # Token 0 is drafted and verified; the override after it returns; then token 2 is drafted and verified.
    confirmed = clairvoyant_ms([True, False, True, True], costs, takeover=False)
    assert confirmed == (10 + 50 + 50) + 50 + 10 + 50 + 50 + 50


def test_a_fast_cloud_writes_by_itself() -> None:
    assert clairvoyant_ms([True] * 10, Costs(50, 100, 20, {1: 20, 10: 200})) == 10 * 20 + 50


def test_a_gate_without_false_alarms_waits_for_overrides_alone() -> None:
    costs = Costs(10, 100, 1000, {1: 50, 8: 50})
    assert clairvoyant_ms([True] * 5, costs, skipping=True) == 50
    agrees = [True, False, True, True]
    assert clairvoyant_ms(agrees, costs, takeover=False, skipping=True) == 10 + 50 + 50 + 50 + 2 * 10


def test_useless_tokens_are_read_where_that_is_cheaper() -> None:
    agrees = [False, False, False]
    assert clairvoyant_ms(agrees, Costs(10, 0, 1000, {1: 90, 2: 90, 3: 60})) == 3 * 60


def test_without_takeover_even_an_override_waits_for_a_draft() -> None:
    costs = Costs(10, 100, 50, {1: 50})
    assert clairvoyant_ms([False], costs) == 50 + 50
    assert clairvoyant_ms([False], costs, takeover=False) == 10 + 50 + 50 + 50


def test_the_floor_on_an_endlessly_fast_device_is_one_forward_and_one_round_trip() -> None:
    assert physical_floor_ms(16, replace(ONE_CORE_EACH, draft_ms=0.0)) == 100 + 500


def test_an_empty_text_takes_no_time() -> None:
    assert clairvoyant_ms([], ONE_CORE_EACH) == 0
    assert physical_floor_ms(0, ONE_CORE_EACH) == 0


def test_a_table_is_interpolated_and_extrapolated_with_its_last_slope() -> None:
    reading = Costs(1, 0, 1, {2: 10, 4: 20, 8: 60}).reading_ms(10)
    assert reading[1:].tolist() == [10, 10, 15, 20, 30, 40, 50, 60, 70, 80]


def test_invalid_times_are_refused() -> None:
    with pytest.raises(ConfigError, match="rtt_ms: -1 is no time"):
        Costs(1, -1, 1, {1: 1})
    with pytest.raises(ConfigError, match="stream_ms: nan is no time"):
        Costs(1, 1, float("nan"), {1: 1})
    with pytest.raises(ConfigError, match="at least one count"):
        Costs(1, 1, 1, {})
    with pytest.raises(ConfigError, match="no time for every count"):
        clairvoyant_ms([True], Costs(1, 1, 1, lambda _: float("inf")))
