"""An event loop whose clock is virtual: instead of sleeping until the next timer is due, it says that it is due.

Nothing else differs from asyncio, so that code written for it, with its sleeps, timeouts and tasks, runs unchanged and
in no time. What cannot be simulated is refused: sockets, pipes, threads.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Never, TypeVar

T = TypeVar("T")


class Deadlock(RuntimeError):
    """Tasks wait for each other: nothing is ready, and no timer will make it so."""


class RealWorld(RuntimeError):
    """Something asked for real I/O or a thread, whose time no virtual clock can tell."""


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end in virtual time, from second 0; raises Deadlock where asyncio would hang."""
    results: list[T] = []

    async def main() -> None:  # returns nothing, because the runner writes out the result of what it ran, for nobody
        results.append(await coroutine)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    return results[0]


class LoopClock:
    """A `chaperone_common.clock.Clock` that shows the time of the running event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def now(self) -> float:
        return self._loop.time()


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop over a selector that waits by moving the clock."""

    def __init__(self) -> None:
        self._virtual = _VirtualSelector(self._explain)
        super().__init__(self._virtual)
        self._virtual.sealed = True  # the loop's own wake-up pipe is registered

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._virtual.now_s

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Never:  # type: ignore[override]
        """Refused: a thread takes real time."""
        raise RealWorld(f"run_in_executor({func!r}): threads take real time; simulate the work by asyncio.sleep")

    def _explain(self) -> str:
        waiting = sorted(_where(task) for task in asyncio.all_tasks(self))
        return f"nothing is ready and no timer is set at {self.time():.6f} s; waiting: {'; '.join(waiting) or 'nobody'}"


def _where(task: asyncio.Task[Any]) -> str:
    frames = task.get_stack(limit=1)
    place = f" at {frames[0].f_code.co_filename}:{frames[0].f_lineno}" if frames else ""
    coroutine = task.get_coro()
    return f"{task.get_name()} ({getattr(coroutine, '__qualname__', coroutine)}{place})"


class _VirtualSelector(selectors.BaseSelector):
    """Never has an event; waiting for one moves the clock to when the loop would stop waiting."""

    def __init__(self, explain: Callable[[], str]) -> None:
        self.now_s = 0.0
        self.sealed = False
        self._explain = explain
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock(self._explain())
        self.now_s += max(0.0, timeout)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if self.sealed:
            raise RealWorld(f"{fileobj!r}: real I/O in virtual time; put a simulated port in its place")
        key = selectors.SelectorKey(fileobj, _number(fileobj), events, data)
        self._keys[fileobj] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(self._same(fileobj))

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self.unregister(fileobj)
        return self.register(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys[self._same(fileobj)]

    def _same(self, fileobj: Any) -> Any:
        """The object that was registered, which may be named by its descriptor."""
        number = _number(fileobj)
        return next((known for known, key in self._keys.items() if key.fd == number), fileobj)


def _number(fileobj: int | socket.socket) -> int:
    return fileobj if isinstance(fileobj, int) else fileobj.fileno()
