"""The search for the first address that answers, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from benchmarks.simulation import virtual_time
from chaperone_common.errors import (
    ChaperoneError,
    CloudUnavailable,
    Overloaded,
    PeerMismatch,
    Unauthenticated,
)
from chaperone_common.frames import API_VERSION, Capabilities
from edge_client.link.addresses import Outages
from edge_client.link.diagnosis import MAY_LOAD, START_IT, NeverConnects
from edge_client.link.search import Site, first_answer
from edge_client.ports import Cloud, CloudLink, Metadata

ANSWER = Capabilities(API_VERSION, "", "", 64, 512, 16)
Behaviour = Callable[[float], Awaitable[Capabilities]]


class Channel:
    """A channel that nobody uses."""

    connected = True

    async def capabilities(self, timeout_ms: float) -> Capabilities:
        raise AssertionError("`ask` is used")

    def link(self, metadata: Metadata = ()) -> CloudLink:
        raise AssertionError("no stream")

    async def close(self) -> None:
        pass


class Scene:
    """Addresses with a behaviour each; records who was asked, and when."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self.asked: list[tuple[str, float]] = []
        self.made: list[str] = []
        self._behaviours = dict(zip("abcdefgh", behaviours, strict=False))
        self.clock = virtual_time.LoopClock()
        self.outages = Outages(self.clock)
        self.sites = [Site(address, self._connect) for address in self._behaviours]

    def _connect(self, address: str) -> tuple[Cloud, Behaviour]:
        self.made.append(address)

        async def ask(timeout_ms: float) -> Capabilities:
            self.asked.append((address, round(self.clock.now(), 3)))
            return await self._behaviours[address](timeout_ms)

        return Channel(), ask

    async def search(self, timeout_ms: float = 5_000.0) -> str | ChaperoneError:
        try:
            index, capabilities = await first_answer(self.sites, timeout_ms, self.outages)
        except ChaperoneError as error:
            return error
        assert capabilities == ANSWER
        return self.sites[index].address


async def answers(timeout_ms: float) -> Capabilities:
    return ANSWER


async def never_answers(timeout_ms: float) -> Capabilities:
    await asyncio.sleep(timeout_ms / 1e3)
    raise CloudUnavailable(f"cloud: it cannot be reached within {timeout_ms:g} ms; {START_IT}")


def failing(error: ChaperoneError, times: int = 1_000_000) -> Behaviour:
    left = [error] * min(times, 1_000)

    async def ask(timeout_ms: float) -> Capabilities:
        if left:
            raise left.pop()
        return ANSWER

    return ask


GONE = CloudUnavailable(f"cloud: gone; {MAY_LOAD}")


def searched(*behaviours: Behaviour, timeout_ms: float = 5_000.0) -> tuple[Scene, str | ChaperoneError, float]:
    async def play() -> tuple[Scene, str | ChaperoneError, float]:
        scene = Scene(*behaviours)
        return scene, await scene.search(timeout_ms), scene.clock.now()

    return virtual_time.run(play())


def test_the_first_address_is_enough_and_no_other_channel_is_made() -> None:
    scene, found, seconds = searched(answers, answers)
    assert (found, seconds, scene.made) == ("a", 0.0, ["a"])


def test_the_next_address_is_asked_at_once() -> None:
    scene, found, seconds = searched(failing(GONE), failing(Overloaded("full", retry_after_ms=9_000)), answers)
    assert (found, seconds) == ("c", 0.0)
    assert scene.outages.last("abc") == ("c", "a", "b")


def test_a_silent_address_takes_only_its_share_of_the_time_and_later_sessions_none() -> None:
    async def play() -> tuple[float, float]:
        scene = Scene(never_answers, answers)
        assert await scene.search() == "b"
        first = scene.clock.now()
        later = scene.outages.last("ab")
        scene.sites.sort(key=lambda site: later.index(site.address))
        assert await scene.search() == "b"
        return first, scene.clock.now() - first

    assert virtual_time.run(play()) == (2.5, 0.0)


def test_after_a_round_each_address_is_asked_again_after_growing_pauses() -> None:
    scene, found, seconds = searched(failing(GONE), failing(GONE, 3))
    assert found == "b"
    assert seconds == pytest.approx(0.7)
    assert [at for address, at in scene.asked if address == "a"] == [0.0, 0.1, 0.3, 0.7]


def test_a_server_that_asks_for_time_gets_it_while_others_are_asked() -> None:
    loading = failing(CloudUnavailable("loading", retry_after_ms=2_000), 1)
    scene, found, seconds = searched(loading, failing(GONE))
    assert found == "a"
    assert [address for address, _ in scene.asked[2:-1]] == ["b"] * (len(scene.asked) - 3)
    assert seconds == pytest.approx(2.1)


@pytest.mark.parametrize("silent", [True, False])
def test_a_search_without_an_answer_ends_in_time_and_names_all_problems(silent: bool) -> None:
    certificate = NeverConnects("cloud: the certificate of b is for another name; correct cloud.address")
    _, error, seconds = searched(never_answers if silent else failing(GONE), failing(certificate))
    assert type(error) is CloudUnavailable
    assert error.message.startswith("cloud: no address answers within 5000 ms (cloud.connect_timeout_ms): ")
    assert "the certificate of b is for another name; correct cloud.address" in error.message
    assert error.message.count(START_IT) == 1
    assert error.message.endswith(MAY_LOAD)
    assert 3.5 <= seconds <= 5.0


def test_a_search_that_cannot_succeed_ends_after_one_round() -> None:
    scene, error, seconds = searched(failing(NeverConnects("cloud: a")), failing(NeverConnects("cloud: b")))
    assert type(error) is CloudUnavailable
    assert (len(scene.asked), seconds) == (2, 0.0)
    assert error.message.endswith(START_IT), "waiting longer would not help"


def test_overload_of_all_addresses_is_reported_as_such() -> None:
    full = [failing(Overloaded("full", retry_after_ms=after)) for after in (60_000, 40_000)]
    _, error, seconds = searched(*full)
    assert isinstance(error, Overloaded)
    assert (error.retry_after_ms, seconds) == (40_000, 0.0)


@pytest.mark.parametrize("refusal", [Unauthenticated("no token"), PeerMismatch("another")])
def test_a_refusal_that_all_addresses_would_repeat_ends_the_search(refusal: ChaperoneError) -> None:
    scene, error, _ = searched(failing(refusal), answers)
    assert error is refusal
    assert len(scene.asked) == 1


def test_a_connection_that_lasts_is_not_asked_again() -> None:
    async def play() -> list[tuple[str, float]]:
        scene = Scene(answers, answers)
        await scene.search()
        scene.sites[0].keep(ANSWER)
        await scene.search()
        scene.sites[0].forget()
        await scene.search()
        return scene.asked

    assert virtual_time.run(play()) == [("a", 0.0)] * 2
