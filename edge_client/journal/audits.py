"""Audits of the texts in the journal: in the background, one at a time, while no generation runs."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from chaperone_common.errors import (
    Cancelled,
    ChaperoneError,
    CloudTimeout,
    ConfigError,
    InternalError,
    InvalidRequest,
    ModelMismatch,
    ProtocolViolation,
    TokenizerMismatch,
    error_from_status,
)
from chaperone_common.frames import Close, Closed, Failure, Open, Opened
from chaperone_common.types import Promises, SessionId
from edge_client.assembly import Assembly, new_session_id
from edge_client.engine.unaudited import UnauditedText
from edge_client.gate import Control
from edge_client.gate.control import Unread
from edge_client.journal.entry import JournalEntry
from edge_client.journal.journal import Journal, JournalState
from edge_client.ports import Cloud, CloudLink

_LOG = logging.getLogger(__name__)

# An audit waits for the end of running generations, but no longer: a client that is always busy has to learn, too.
_YIELD_SECONDS = 10.0
# A text on which the cloud has failed this often is given up, or the texts after it would never be audited.
_MOST_FAILURES = 3
_MISFITS = (ModelMismatch, TokenizerMismatch, InvalidRequest, ProtocolViolation)


@dataclass(frozen=True, slots=True)
class _Pending:
    """The unread tokens of an entry, as the control counts them until the audit."""

    control: Control
    unread: Unread


class JournalAudits:
    """The journal of a client, and the tasks that have its texts audited.

    A text counts in the totals of its promises as after a closing audit, and once for each client.
    """

    def __init__(self, assembly: Assembly, journal: Journal, idle: Callable[[], Awaitable[object]]) -> None:
        """`idle` waits until no generation of the client runs."""
        self._assembly = assembly
        self._journal = journal
        self._idle = idle
        self._pending: dict[str, _Pending] = {}
        self._failures: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._background: asyncio.Task[None] | None = None  # one of them
        self._one_at_a_time = asyncio.Lock()
        self._expect_all()

    @property
    def state(self) -> JournalState:
        """The counts of the journal."""
        return self._journal.state

    def keep(self, text: UnauditedText, promises: Promises) -> None:
        """Add a text that no audit has reached. After `close` the file is locked for this moment only."""
        was_open = self._journal.is_open
        try:
            self._open()
        except ConfigError as error:
            _LOG.warning("a text is kept in memory only: %s", error.message)
        entry, dropped = self._journal.add(text, promises)
        for entry_id in dropped:
            self._expect_no_more(entry_id)
        if entry is not None:
            self._expect(entry)
        if not was_open:
            self._release()

    def start(self) -> None:
        """Begin to audit in the background, if texts wait and the task does not run. Call it when a cloud is there."""
        with suppress(ConfigError):
            self._open()
        if (self._background is None or self._background.done()) and self._journal.oldest() is not None:
            self._background = self._begin(self._audit_in_background())

    async def audit_all(self) -> JournalState:
        """Audit all texts now, and return the counts.

        Raises CloudLost, Overloaded, InternalError or PeerMismatch, and keeps the texts that are left. Raises Cancelled
        if the client is closed.
        """
        self._open()
        task = self._begin(self._audit_until_empty())
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
        if task.cancelled():
            raise Cancelled("journal: the client was closed during an audit; the texts that are left stay in the file")
        task.result()
        return self.state

    async def stop(self) -> None:
        """End all tasks, and the audits that they wait for. Texts that were not audited stay in the journal."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def leave_loop(self) -> None:
        """Forget the tasks of an event loop that has ended."""
        self._background = None
        self._tasks.clear()
        self._one_at_a_time = asyncio.Lock()

    async def close(self) -> None:
        """End all tasks, write the file and release it."""
        await self.stop()
        self._release()  # on the loop: a generation that ends now must not meet a file that is half closed

    def _release(self) -> None:
        self._journal.close()
        for entry_id in tuple(self._pending):
            self._expect_no_more(entry_id)

    def _open(self) -> None:
        """Open the journal again after `close`."""
        if not self._journal.is_open:
            self._journal.open()
            self._expect_all()

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _audit_until_empty(self) -> None:
        while await self._audit_oldest():
            pass

    async def _audit_in_background(self) -> None:
        with suppress(ChaperoneError):  # the next generation that reaches a cloud begins again
            while self._journal.oldest() is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_YIELD_SECONDS):
                        await self._idle()
                await self._audit_oldest()

    async def _audit_oldest(self) -> bool:
        """Audit the text that has waited the longest, or drop it if that is impossible; return False without any."""
        async with self._one_at_a_time:
            entry = self._journal.oldest()
            if entry is not None:
                await self._audit(entry)
        return entry is not None

    async def _audit(self, entry: JournalEntry) -> None:
        session_id = new_session_id()
        cloud, capabilities = await self._assembly.reach(session_id)
        text = entry.text
        if text.tokenizer_digest != self._assembly.manifest.tokenizer_digest:
            self._drop(entry, "it was written with another tokenizer")
        elif text.model_digest not in ("", capabilities.model_digest):
            self._drop(entry, "another large model began it")
        else:
            await self._audit_with(cloud, session_id, entry)

    async def _audit_with(self, cloud: Cloud, session_id: SessionId, entry: JournalEntry) -> None:
        opening, close = self._frames(session_id, entry.text)
        try:
            closed = await _read(cloud.link(), opening, close, self._assembly.config.cloud.open_deadline_ms)
        except _MISFITS as error:
            self._assembly.peer.forget()  # the cloud may have been replaced
            self._drop(entry, f"the cloud refuses it with {type(error).__name__}")
        except InternalError:
            self._failures[entry.id] += 1
            if self._failures[entry.id] < _MOST_FAILURES:
                raise
            self._drop(entry, "the cloud fails on it")
        else:
            self._settle(entry, closed)

    def _frames(self, session_id: SessionId, text: UnauditedText) -> tuple[Open, Close]:
        unread = text.start - len(text.prompt_token_ids)
        opening = Open(
            session_id=session_id,
            tokenizer_digest=text.tokenizer_digest,
            sampling=text.sampling,
            max_new_tokens=len(text.token_ids),
            eos_token_ids=self._assembly.manifest.eos_token_ids,
            prompt_token_ids=text.prompt_token_ids,
            committed_token_ids=text.token_ids[:unread],
            model_digest=text.model_digest,
        )
        return opening, Close(text.start, text.token_ids[unread:])

    def _settle(self, entry: JournalEntry, closed: Closed) -> None:
        """Count an audit, and remove its entry. Both happen, or neither."""
        text = entry.text
        deviations = {position for position in closed.deviations if text.start <= position < text.end}
        if not self._journal.settle(entry, deviations=len(deviations)):
            return
        self._expect_no_more(entry.id)
        control = self._assembly.control(entry.promises)
        if control is not None and text.skipped:
            found = sum(begin <= position < end for position in deviations for begin, end in text.skipped)
            control.record_audit(text.skipped_tokens, found, expected=text.risk, weight=text.weight)

    def _drop(self, entry: JournalEntry, reason: str) -> None:
        self._journal.drop(entry, reason)
        self._expect_no_more(entry.id)

    def _expect_all(self) -> None:
        for entry in self._journal.entries():
            self._expect(entry)

    def _expect(self, entry: JournalEntry) -> None:
        """Let the control count the unread tokens of an entry, as those of a text whose Close is on its way."""
        control = self._assembly.control(entry.promises)
        if control is not None and entry.text.skipped:
            unread = control.register()
            unread.tokens, unread.risk = entry.text.skipped_tokens, entry.text.risk
            self._pending[entry.id] = _Pending(control, unread)

    def _expect_no_more(self, entry_id: str) -> None:
        if (pending := self._pending.pop(entry_id, None)) is not None:
            pending.control.unregister(pending.unread)


async def _read(link: CloudLink, opening: Open, close: Close, timeout_ms: float) -> Closed:
    """Let the cloud read the unread part of a text; raises its error, or CloudTimeout."""
    closed = None
    await link.open(opening)
    try:
        link.send(close)
        link.close()
        while closed is None:
            if not await link.wait(timeout_ms):
                raise CloudTimeout(f"cloud: no audit within {timeout_ms:.0f} ms (cloud.open_deadline_ms)")
            for frame, _ in link.ready():
                match frame:
                    case Closed():
                        closed = frame
                    case Failure():
                        raise error_from_status(frame.status, frame.message, retry_after_ms=frame.retry_after_ms)
                    case Opened():
                        pass
                    case _:
                        raise ProtocolViolation(f"frame: {type(frame).__name__} on a stream that only audits")
    finally:
        if closed is None:
            link.cancel()
    return closed
