"""An event loop with a virtual clock: instead of sleeping until the next timer is due, it moves the clock.

Nothing else differs from asyncio. Code with sleeps, timeouts and tasks runs unchanged and takes no time. The loop
refuses what it cannot simulate: sockets, pipes, threads.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Never, TypeVar

T = TypeVar("T")


class Deadlock(RuntimeError):
    """Tasks wait for each other: none is ready, and no timer is pending."""


class RealWorld(RuntimeError):
    """A call asked for real I/O or a thread, which take time that a virtual clock cannot measure."""


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end in virtual time, from second 0; raise Deadlock where asyncio would hang."""
    results: list[T] = []

    async def main() -> None:  # returns None, because the runner would format its result
        results.append(await coroutine)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    return results[0]


class LoopClock:
    """A `chaperone_common.clock.Clock` with the time of the running event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def now(self) -> float:
        return self._loop.time()


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop over a selector that moves the clock instead of waiting."""

    def __init__(self) -> None:
        self._virtual = _VirtualSelector(self._explain)
        super().__init__(self._virtual)
        self._virtual.sealed = True  # the loop's own wake-up pipe is registered

    def time(self) -> float:
        """Return the seconds since the loop was made."""
        return self._virtual.now_s

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Never:  # type: ignore[override]
        """Raise RealWorld: a thread takes real time."""
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
    """A selector without events; waiting moves the clock to the end of the wait."""

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
        """Return the registered object, which may be named by its descriptor."""
        number = _number(fileobj)
        return next((known for known, key in self._keys.items() if key.fd == number), fileobj)


def _number(fileobj: int | socket.socket) -> int:
    return fileobj if isinstance(fileobj, int) else fileobj.fileno()
