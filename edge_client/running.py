"""Running generations: from the request to the last event, and to the audit that may arrive after it."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from weakref import WeakSet

import numpy as np

from chaperone_common.errors import Cancelled, ChaperoneError, CloudLost, InvalidRequest, ModelMismatch
from chaperone_common.session import Committed, Failed, Finished, Retracted
from chaperone_common.stats import GenerationStats
from chaperone_common.suggestion import shown
from chaperone_common.types import Mode, Promises
from edge_client.assembly import Assembly
from edge_client.caches import ConversationCaches
from edge_client.cancellation import Cancellation, Interrupt
from edge_client.engine.beam_engine import BeamEngine
from edge_client.engine.engine import Engine
from edge_client.events import Event
from edge_client.generation import Collector, Generation, GenerationRequest, Streamer
from edge_client.journal import Journal, JournalAudits
from edge_client.link.diagnosis import after_loss

_AUDIT_PATIENCE_S = 5.0  # for audits that are still due when the client is closed


class Run:
    """One generation of a client."""

    def __init__(
        self,
        runs: Runs,
        request: Callable[[], Awaitable[GenerationRequest]],
        *,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        explain: bool = False,
        caches: ConversationCaches | None = None,
    ) -> None:
        """`request` parses the user's prompt and parameters; the generation's time includes that."""
        self._runs = runs
        self._request = request
        self._timeout = timeout
        self._cancellation = cancellation
        self._id = uuid.uuid4().hex
        self._explain = explain
        self._caches = caches
        self._collected: Collector | None = None

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield the events of the generation; its time begins now. Raises InvalidRequest."""
        if not isinstance(self._explain, bool):
            raise InvalidRequest(
                f"explain: {shown(self._explain)} is not True or False; decisions are `Planned` events"
            )
        with self._runs.interruptible(self._timeout, self._cancellation) as interrupt:
            try:
                request = await interrupt.bounded(self._request())
            except Cancelled as error:
                yield Failed(error, GenerationStats(generation_id=self._id))
                return
            self._collected = collected = Collector(request)
            async with aclosing(self._written(request, interrupt)) as events:
                async for event in events:
                    if isinstance(event, Failed) and isinstance(event.error, CloudLost):
                        event = replace(event, error=self._with_remedy(event.error, collected))
                    collected.add(event)
                    if isinstance(event, Failed):
                        event.error.partial = collected.partial()
                        if not isinstance(event.error, Cancelled):
                            self._runs.assembly.peer.forget()  # another cloud may answer next time
                    yield event

    def _with_remedy(self, error: CloudLost, collected: Collector) -> CloudLost:
        """Return the loss of the cloud with what its user can do: resume the final tokens, or do without the cloud."""
        on_loss, final_tokens = self._runs.assembly.config.cloud.on_loss, len(collected.partial().token_ids)
        request, resume = collected.request, "resume with generate(error.partial)"
        beams = request.params.beams is not None
        remedy = after_loss(request.mode, on_loss, final_tokens, resume, beams=beams)
        return type(error)(error.message, retry_after_ms=error.retry_after_ms, remedy=remedy)

    def result(self) -> Generation:
        """Return the generation after its last event; raises the error of a Failed event."""
        assert self._collected is not None, "events() ends with Finished or Failed, or raises"
        return self._collected.result()

    @property
    def begun(self) -> bool:
        """True once the request is parsed."""
        return self._collected is not None

    @property
    def request(self) -> GenerationRequest:
        """The request, after the first event."""
        assert self._collected is not None, "the request is parsed when `events` begins"
        return self._collected.request

    async def _written(self, request: GenerationRequest, interrupt: Interrupt) -> AsyncGenerator[Event, None]:
        """Yield an engine's events. Begin again, once, if the cloud was replaced after it reported its model."""
        assembly, prompt_tokens = self._runs.assembly, len(request.prompt.token_ids)
        for may_begin_again in (True, False):
            try:
                making = assembly.engine(
                    request, interrupt, self._caches, generation_id=self._id, explain=self._explain
                )
                engine = await interrupt.bounded(making)
            except InvalidRequest:
                raise
            except ChaperoneError as error:
                seed = request.params.sampling.seed
                yield Failed(error, GenerationStats(prompt_tokens=prompt_tokens, generation_id=self._id, seed=seed))
                return
            if engine.cloud.is_up:
                self._runs.audit_journal()
            with self._runs.running(engine, request, self._caches):
                async with aclosing(engine.stream()) as events:
                    async for event in events:
                        if may_begin_again and isinstance(event, Failed) and self._is_refused(event, request):
                            break
                        yield event
                    else:
                        return
            assembly.peer.forget()
            if self._collected is not None:
                self._collected.beams = None
                if self._collected.drafted:
                    yield Retracted(prompt_tokens)

    def _is_refused(self, failed: Failed, request: GenerationRequest) -> bool:
        """Return whether the cloud has another model than it reported, and nothing of the text is final yet."""
        final = self._collected is not None and self._collected.token_ids
        begun = request.model_digest or request.committed_token_ids or request.begun_beams or final
        return isinstance(failed.error, ModelMismatch) and not begun


async def final_text(events: AsyncGenerator[Event, None]) -> AsyncGenerator[str, None]:
    """Yield the text of final tokens, as it comes; raises the error of a Failed event."""
    async with aclosing(events) as received:
        async for event in received:
            if text := text_of(event):
                yield text


def text_of(event: Event) -> str:
    """Return the final text that an event adds; raises the error of a Failed event."""
    match event:
        case Failed(error):
            raise error
        case Committed(text=text) | Finished(text=text):
            return text
        case _:
            return ""


async def whole(run: Run, run_events: AsyncGenerator[Event, None], streamer: Streamer | None = None) -> Generation:
    """Run to the end and return the result; raises the error of a Failed event."""
    async with aclosing(run_events if streamer is None else _fed(streamer, run, run_events)) as events:
        async for event in events:
            if isinstance(event, Failed):
                raise event.error
    return run.result()


async def _fed(streamer: Streamer, run: Run, run_events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """Yield the events of a run, and give the token ids to a streamer, as transformers' `generate` does.

    Unlike there, `end` is called after a failure, too: nobody who reads from the streamer waits for ever.
    """
    if not callable(getattr(streamer, "put", None)) or not callable(getattr(streamer, "end", None)):
        raise InvalidRequest(
            f"streamer: {shown(streamer)} has no put and end; give an object with both, or use stream_text, which "
            "needs none"
        )
    begun = False
    try:
        async with aclosing(run_events) as events:
            async for event in events:
                if run.begun and not begun:
                    begun = True
                    ids = (*run.request.prompt.token_ids, *run.request.committed_token_ids)
                    streamer.put(np.array([ids]))  # [1, tokens]
                if isinstance(event, Committed):
                    streamer.put(np.array([event.token_id]))
                yield event
    finally:
        streamer.end()


class Runs:
    """All running generations of a client, on the one event loop that it uses."""

    def __init__(self, assembly: Assembly) -> None:
        """Open the journal, if the settings name one; raises ConfigError."""
        self.assembly = assembly
        self.caches: WeakSet[ConversationCaches] = WeakSet()  # of all conversations
        self.audits: set[asyncio.Task[object]] = set()  # of texts that have ended
        self._interrupts: set[Interrupt] = set()  # one for each generation, from its request on
        self._engines: set[Engine | BeamEngine] = set()
        self._loop: asyncio.AbstractEventLoop | None = None  # the one that was used last
        self._process = os.getpid()
        self._idle = asyncio.Event()  # no generation runs
        self._idle.set()
        gate = assembly.config.gate
        self.journal: JournalAudits | None = None
        if gate.journal_file is not None:
            journal = Journal(gate.journal_file, gate.journal_mib << 20)
            self.journal = JournalAudits(assembly, journal, lambda: self._idle.wait())

    @property
    def forked(self) -> bool:
        """True in a child process, to which models and connections do not belong."""
        return self._process != os.getpid()

    def enter_loop(self) -> None:
        """Belong to the running event loop from now on; raises InvalidRequest if another one still runs."""
        if self.forked:
            raise InvalidRequest("client: it was made in another process; make a new one after the fork")
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None:
            if self._loop.is_running():
                raise InvalidRequest("client: another event loop is using it; make one client for each, or close it")
            self._engines.clear()
            self._interrupts.clear()
            self.audits.clear()
            self._idle = asyncio.Event()
            self._idle.set()
            if self.journal is not None:
                self.journal.leave_loop()
            self.assembly.leave_loop()
        self._loop = loop

    @contextmanager
    def interruptible(self, timeout: float | None, cancellation: Cancellation | None) -> Iterator[Interrupt]:
        """Let time, `cancellation` or the closing of the client end what runs inside; raises InvalidRequest."""
        self.enter_loop()
        if cancellation is not None and not isinstance(cancellation, Cancellation):
            raise InvalidRequest(f"cancellation: {shown(cancellation)} is not a Cancellation")
        interrupt = Interrupt(timeout)
        self._interrupts.add(interrupt)
        self._idle.clear()
        try:
            with (cancellation or Cancellation()).stopping(interrupt.canceller()):
                yield interrupt
        finally:
            self._interrupts.discard(interrupt)
            if not self._interrupts:
                self._idle.set()

    @contextmanager
    def running(
        self, engine: Engine | BeamEngine, request: GenerationRequest, caches: ConversationCaches | None = None
    ) -> Iterator[None]:
        """Let `close` end this engine. In `gated`, a pending audit goes on after the text."""
        self._engines.add(engine)
        try:
            yield
        finally:
            self._engines.discard(engine)
            if caches is not None:
                caches.ended(engine.opening.session_id, engine.text_of_cloud)
            if request.mode is Mode.GATED:
                self._have_audited(engine, request.promises)

    def audit_journal(self) -> None:
        """Begin to audit the texts in the journal, in the background: a cloud was reached."""
        if self.journal is not None:
            self.journal.start()

    async def close(self) -> None:
        """End all generations with Failed(Cancelled). Pending closing audits get a moment to arrive."""
        if self.journal is not None:
            await self.journal.stop()
        for interrupt in tuple(self._interrupts):
            interrupt.stop(Cancelled("generation: the client was closed"))
        for engine in tuple(self._engines):
            engine.cancel()
        if self.audits:
            await asyncio.wait(tuple(self.audits), timeout=_AUDIT_PATIENCE_S)
        lost = tuple(self.audits)
        for audit in lost:
            audit.cancel()
        if lost:
            await asyncio.wait(lost)
        if self.journal is not None:
            await self.journal.close()
        for caches in tuple(self.caches):  # they hold the model
            caches.clear()

    def _have_audited(self, engine: Engine | BeamEngine, promises: Promises) -> None:
        """Wait for the closing audit of a text. If none comes, the text goes into the journal."""

        def keep(_: object = None) -> None:
            left = engine.unaudited() if self.journal is not None else None
            if left is not None and self.journal is not None:
                self.journal.keep(left, promises)

        if not engine.audit_pending:
            keep()
            return
        task: asyncio.Task[object] = asyncio.create_task(engine.audit())
        self.audits.add(task)
        task.add_done_callback(self.audits.discard)
        task.add_done_callback(keep)
