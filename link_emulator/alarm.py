"""Callbacks at a precise time on an asyncio event loop.

`loop.call_at` rounds up to whole milliseconds, because epoll does. For a link of a few milliseconds, that is an error
of a quarter. Linux has timers that are file descriptors, which an event loop can watch. They are precise to some tens
of microseconds. Python's `os` has them from 3.13 on; this module calls them with ctypes, and falls back to
`loop.call_at`. Source: timerfd_create(2).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import heapq
import itertools
import os
import time
from collections.abc import Callable

_NANOSECONDS = 10**9
_ABSOLUTE = 1


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class Alarm:
    """Callbacks at times of `time.monotonic`, never too early, on the running event loop."""

    def __init__(self, *, precise: bool = True) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._set_for = float("inf")
        self._handle: asyncio.TimerHandle | None = None
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = self._make_timer() if precise else None
        if self._timer is not None:
            self._loop.add_reader(self._timer, self._ring)

    @property
    def precise(self) -> bool:
        """True if it has a timer of the kernel."""
        return self._timer is not None

    def at(self, when_s: float, callback: Callable[[], None]) -> None:
        """Call back at `when_s`, or soon if that is past. Callbacks of one time keep their order."""
        heapq.heappush(self._waiting, (when_s, next(self._order), callback))
        if when_s < self._set_for:
            self._set(when_s)

    def close(self) -> None:
        """Drop all callbacks."""
        self._waiting.clear()
        if self._handle is not None:
            self._handle.cancel()
        if self._timer is not None:
            self._loop.remove_reader(self._timer)
            os.close(self._timer)
            self._timer = None

    def _make_timer(self) -> int | None:
        create = getattr(self._libc, "timerfd_create", None)
        if create is None:
            return None
        timer = int(create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
        return timer if timer >= 0 else None

    def _set(self, when_s: float) -> None:
        self._set_for = when_s
        if self._timer is None:
            if self._handle is not None:
                self._handle.cancel()
            delay_s = max(0.0, when_s - time.monotonic())
            self._handle = self._loop.call_later(delay_s, self._ring)
            return
        seconds, nanoseconds = divmod(max(1, int(when_s * _NANOSECONDS) + 1), _NANOSECONDS)
        spec = _TimerSpec(_TimeSpec(0, 0), _TimeSpec(seconds, nanoseconds))
        if self._libc.timerfd_settime(self._timer, _ABSOLUTE, ctypes.byref(spec), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def _ring(self) -> None:
        self._set_for = float("inf")  # a timer that rang does not ring again; it is readable until it is read or set
        if self._timer is not None:
            with contextlib.suppress(BlockingIOError):  # it was set again after it rang
                os.read(self._timer, 8)
        while self._waiting and self._waiting[0][0] <= time.monotonic():
            heapq.heappop(self._waiting)[2]()
        if self._waiting and self._waiting[0][0] < self._set_for:
            self._set(self._waiting[0][0])
