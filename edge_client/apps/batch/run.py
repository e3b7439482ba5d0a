"""A batch: several lines run at once, and each gets one result, in the order of the input."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from chaperone_common.errors import ChaperoneError, InvalidRequest, OutputLost
from chaperone_common.session import Committed
from edge_client.apps.batch.explanation import Explain
from edge_client.apps.batch.lines import Line, failure_json, in_commands, line_of, request_of
from edge_client.apps.batch.results import Results, key_of
from edge_client.client import EdgeClient
from edge_client.events import Planned
from edge_client.generation import Collector, error_json

_WINDOW = 4  # lines that run or wait, in multiples of the lines that run


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a line: a result to write, or None if the file has one already."""

    line: Line
    result: dict[str, Any] | None
    complaint: str | None = None
    warnings: Sequence[str] = ()


@dataclass
class Tally:
    """Counts of lines and tokens so far."""

    done: int = 0
    kept: int = 0
    failed: int = 0
    tokens: int = 0

    @property
    def lines(self) -> int:
        return self.done + self.kept + self.failed


@dataclass
class Batch:
    """One run over a file of prompts."""

    client: EdgeClient
    defaults: dict[str, Any]  # for lines without their own
    results: Results
    complain: Callable[[str], None]
    warn: Callable[[str], None]
    watch: Callable[[Tally], None] = lambda _: None
    explain: Callable[[Any], Explain] | None = None  # from the `id` of a line
    timeout_s: float | None = None  # of each line
    tally: Tally = field(default_factory=Tally)
    _ids: set[str] = field(default_factory=set)

    async def run(self, lines: AsyncIterator[bytes], *, concurrency: int = 1) -> Tally:
        """Write a result for every line that is not blank.

        Raises OutputLost if results cannot be written, InvalidRequest if lines cannot be read, and any error of the
        device's model, which is loaded before the first line. All finished results are written in every case.
        """
        await self.client.load()
        await in_order(_parsed(lines), self._outcome, self._deliver, limit=concurrency)
        self.results.complete()
        return self.tally

    async def _outcome(self, line: Line) -> Outcome:
        try:
            self._check_id(line)  # before the first await, so in the order of the lines
            request = await asyncio.to_thread(request_of, self.client, line, self.defaults)
        except ChaperoneError as error:
            message = f"line {line.number}: {error.message}"
            result = {"id": line.id, "error": error_json(error, where=f"line {line.number}: ")}
            return Outcome(line, result, message)
        try:
            if self.results.kept(line.id, request.prompt.token_ids):
                return Outcome(line, None)
        except InvalidRequest as error:
            return Outcome(line, None, f"line {line.number}: {error.message}")
        collected = Collector(request)
        try:
            explain = self.explain(line.id) if self.explain is not None else None
            stream = self.client.stream(request, timeout=self.timeout_s, explain=explain is not None)
            async with aclosing(stream) as events:
                async for event in events:
                    collected.add(in_commands(event, self.client.config.cloud.on_loss))
                    if explain is not None and isinstance(event, Planned):
                        explain(event.decision)
                    self.tally.tokens += isinstance(event, Committed)
                    self.watch(self.tally)
            result = {"id": line.id, **collected.result().to_json()}
            return Outcome(line, result, warnings=[f"line {line.number}: {text}" for text in collected.warnings()])
        except ChaperoneError as error:
            result = {"id": line.id, **failure_json(collected, error, where=f"line {line.number}: ")}
            return Outcome(line, result, result["error"]["message"])

    def _check_id(self, line: Line) -> None:
        if line.id is None:
            return  # `request_of` refuses the line
        key = key_of(line.id)
        if key in self._ids:
            raise InvalidRequest(f"id: {key} is that of an earlier line too; give each line its own")
        self._ids.add(key)

    def _deliver(self, outcome: Outcome) -> None:
        if outcome.result is None:
            self.results.keep(outcome.line.id)
        else:
            self.results.add(outcome.result)
        for warning in outcome.warnings:
            self.warn(warning)
        if outcome.complaint is not None:
            self.tally.failed += 1
            self.complain(outcome.complaint)
        elif outcome.result is None:
            self.tally.kept += 1
        else:
            self.tally.done += 1
        self.watch(self.tally)


async def _parsed(lines: AsyncIterator[bytes]) -> AsyncIterator[Line]:
    number = 0
    async for raw in lines:
        number += 1
        if raw.strip():
            yield line_of(number, raw)


async def in_order(
    lines: AsyncIterator[Line],
    start: Callable[[Line], Coroutine[Any, Any, Outcome]],
    deliver: Callable[[Outcome], None],
    *,
    limit: int,
) -> None:
    """Work on up to `limit` lines at once, and deliver their outcomes in the order of the lines.

    If it is cancelled, or a task raises, the finished outcomes are delivered first.
    """
    window: deque[asyncio.Task[Outcome]] = deque()
    reading: asyncio.Task[Line | None] | None = None
    ended = False
    try:
        while window or not ended:
            running = [task for task in window if not task.done()]
            if reading is None and not ended and len(running) < limit and len(window) < _WINDOW * limit:
                reading = asyncio.create_task(_next(lines))
            await asyncio.wait([*running, *([reading] if reading else [])], return_when=asyncio.FIRST_COMPLETED)
            if reading is not None and reading.done():
                line, reading = reading.result(), None
                if line is None:
                    ended = True
                else:
                    window.append(asyncio.create_task(start(line)))
            while window and window[0].done():
                deliver(window.popleft().result())
    except BaseException as error:
        await _end([*window, reading])
        for task in window:
            if not isinstance(error, OutputLost) and not task.cancelled() and task.exception() is None:
                deliver(task.result())
        raise


async def _next(lines: AsyncIterator[Line]) -> Line | None:
    return await anext(lines, None)


async def _end(tasks: list[asyncio.Task[Any] | None]) -> None:
    """Cancel tasks and wait until they have ended."""
    still = [task for task in tasks if task is not None]
    for task in still:
        task.cancel()
    await asyncio.gather(*still, return_exceptions=True)
