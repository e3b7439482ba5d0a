"""The loop that writes one generation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from random import Random

from common.clock import Clock
from common.errors import Cancelled, ChaperoneError, CloudLost, CloudTimeout, InternalError, Overloaded, status_of
from common.gate import Gate, Never
from common.messages import Failure, Open, Verdict
from common.planner import Draft, FixedPlanner, HandOver, Send, Wait
from common.session import Committed, DeviceSession, Drafted, Event, Failed, Finished, Retracted, SessionEvent
from common.types import Mode
from edge_client.measurement import Stopwatch
from edge_client.ports import CloudLink, Drafter, OutputText
from edge_client.reconnection import DelayedLink, Reconnection


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How one generation is run; deadlines are in milliseconds."""

    open_deadline_ms: float
    verification_deadline_ms: float
    takeover_tokens: int = 0  # that the cloud may write on after an override
    max_span_tokens: int = 256  # that one Draft may carry
    reconnect_timeout_ms: float = 0.0  # for which a lost cloud is sought again; 0: not at all
    continue_without_cloud: bool = False
    closing_audit: bool = False  # wait for the audit of the unread tail
    warm_start: bool = False  # draft nothing until both ends hold the prompt's KV


class Engine:
    """One generation: drafts on the device, asks the cloud where the gate fires, yields what becomes of it."""

    def __init__(
        self,
        opening: Open,
        *,
        limit: int,
        drafter: Drafter | None,
        connect: Callable[[], CloudLink] | None,
        gate: Gate,
        planner: FixedPlanner,
        output: OutputText,
        clock: Clock,
        settings: EngineSettings,
    ) -> None:
        """`connect` makes a link to the cloud, not yet opened, whenever one is needed; None if there is no cloud."""
        self.opening = opening
        self.session = DeviceSession(opening, limit=limit)
        self.drafter = drafter
        self.connect = connect
        self.link = connect() if connect is not None else None
        self.gate = gate
        self.planner = planner
        self.output = output
        self.settings = settings
        self.watch = Stopwatch(clock)
        # Session ids differ, so devices that lose one cloud together do not come back together.
        jitter = Random(opening.session_id)  # noqa: S311
        self.reconnection = Reconnection(clock, jitter, timeout_ms=settings.reconnect_timeout_ms)
        self._cancelled = False

    def cancel(self) -> None:
        """End the generation from outside: it fails with Cancelled at its next step."""
        self._cancelled = True
        if self.link is not None:
            self.link.cancel()

    async def stream(self) -> AsyncGenerator[Event, None]:
        """Yield events; the last one is Finished or Failed. Leaving early cancels the generation."""
        ended = False
        try:
            try:
                await self._begin()
                async with aclosing(self._write()) as events:
                    async for event in events:
                        yield event
                await self._end()
                ended = True
                reason = self.session.finish_reason
                assert reason is not None, "the loop ends only when the session has"
                yield Finished(reason, self.watch.stats(self.session, self.link), self.output.flush())
            except ChaperoneError as error:
                # What the output still holds back, a part of a character, say, is told by the generation that resumes.
                yield Failed(error, self.watch.stats(self.session, self.link))
        finally:
            self._release(graceful=ended)

    async def _write(self) -> AsyncGenerator[SessionEvent, None]:
        while self.session.finish_reason is None:
            if self._cancelled:
                raise Cancelled("generation: the client was closed")
            try:
                for event in self._receive():
                    yield event
                if self.session.finish_reason is None:
                    for event in await self._act():
                        yield event
            except (CloudLost, Overloaded, InternalError) as error:
                if await self._reconnect(error):
                    continue
                if not self.settings.continue_without_cloud or self.drafter is None:
                    raise self.reconnection.outcome(error) from None
                for event in self._go_on_alone():
                    yield event

    async def _act(self) -> list[SessionEvent]:
        match self.planner.next_action(self.session):
            case Draft():
                return await self._draft()
            case Send():
                self._send(continuation_tokens=self.settings.takeover_tokens)
            case HandOver(tokens):
                self._send(continuation_tokens=tokens - 1)
            case Wait():
                await self._wait()
        return []

    @property
    def _patience_ms(self) -> float:
        """How long an answer may take; the first ones wait until the cloud has read the prompt."""
        settings = self.settings
        return settings.verification_deadline_ms if self.session.prefilled else settings.open_deadline_ms

    async def _draft(self) -> list[SessionEvent]:
        session = self.session
        assert self.drafter is not None, "the planner drafts only where there is a model"
        with self.watch.edge_compute():
            proposal = await self.drafter.step(session.text[self.drafter.length :])
        ends = proposal.token_id in session.eos_token_ids
        # End-of-text cannot be taken back, so nobody but the cloud may skip it.
        fires = self.gate.fires(proposal.signal) or (self.link is not None and ends)
        return list(self._observe(session.draft(proposal.token_id, proposal.signal, fires=fires)))

    def _send(self, *, continuation_tokens: int) -> None:
        assert self.link is not None, "the planner sends only where there is a cloud"
        frame = self.session.send(
            continuation_tokens=continuation_tokens,
            max_tokens=self.settings.max_span_tokens,
            deadline_ms=int(self._patience_ms),
        )
        self.link.send(frame)

    def _receive(self) -> Iterator[SessionEvent]:
        for frame in self.link.ready() if self.link is not None else ():
            if isinstance(frame, Verdict):
                self.watch.answered()
            yield from self._observe(self.session.apply(frame))
            owed = bool(self.session.spans) or not self.session.prefilled
            self.reconnection.heard(caught_up=isinstance(frame, Verdict) or not owed)
            if self.session.finish_reason is not None:
                return

    async def _wait(self) -> None:
        assert self.link is not None, "the planner waits only for a cloud"
        timeout_ms = self.reconnection.left_ms if self.reconnection.seeking else self._patience_ms
        self.watch.waiting(for_verdict=bool(self.session.spans) and not self.session.following)
        if not await self.link.wait(timeout_ms):
            message = (
                f"cloud: no answer within {timeout_ms:.0f} ms at position {self.session.final}; it is overloaded or "
                "the link is down. Raise cloud.verification_deadline_ms (or cloud.open_deadline_ms for long prompts), "
                "or resume from the committed tokens"
            )
            list(self.session.apply(Failure(status_of(CloudTimeout(message)), message)))  # raises CloudTimeout

    def _observe(self, events: Iterable[SessionEvent]) -> Iterator[SessionEvent]:
        """Keep model, clock and text in step with the session; a completed stop string ends it."""
        for event in events:
            match event:
                case Drafted():
                    self.watch.token_shown()
                    yield event
                case Retracted(position):
                    if self.drafter is not None:
                        self.drafter.rewind(min(self.drafter.length, position))
                    yield event
                case Committed():
                    self.watch.token_shown()
                    self.watch.token_committed()
                    text, stopped = self.output.push(event.token_id)
                    yield replace(event, text=text)
                    if stopped:
                        yield from self.session.finish_at(event.position + 1)
                        return

    async def _begin(self) -> None:
        self.watch.start()
        if self.link is not None:
            await self.link.open(self.opening)
        elif self.planner.mode is not Mode.EDGE:
            list(self._go_on_alone())  # the cloud was lost before it was found
        if not self.settings.warm_start:
            return
        if self.drafter is not None and len(self.session.text) > 1:
            with self.watch.edge_compute():
                await self.drafter.step(self.session.text[:-1])
        while self.link is not None and not self.session.prefilled:
            for frame in self.link.ready():
                list(self.session.apply(frame))
            if not self.session.prefilled:
                await self._wait()
        self.watch.warm()

    async def _end(self) -> None:
        self.watch.stop()
        if self.link is None:
            return
        if self.reconnection.seeking and not self.settings.closing_audit:  # nobody would hear of the audit
            self.link.cancel()
            return
        self.link.send(self.session.close())
        self.link.close()
        try:
            while self.settings.closing_audit and not self.session.closed:
                for frame in self.link.ready():
                    self.reconnection.heard(caught_up=False)
                    list(self.session.apply(frame))
                if not self.session.closed:
                    await self._wait()
        except ChaperoneError:  # the text is complete without it; `deviation_bound` counts what stays unread
            self.link.cancel()

    async def _reconnect(self, error: ChaperoneError) -> bool:
        """Open the session anew on another stream, if that may help; what is provisional stays so meanwhile."""
        pause_ms = self.reconnection.pause_ms(error)
        if self.connect is None or pause_ms is None:
            return False
        self._hang_up()
        self.link = DelayedLink(self.connect(), pause_ms)
        await self.link.open(self.session.reopen())
        return True

    def _hang_up(self) -> None:
        if self.link is not None:
            self.watch.keep_bytes(self.link)
            self.link.cancel()
        self.link = None

    def _go_on_alone(self) -> Iterator[SessionEvent]:
        self._hang_up()
        self.gate = Never()
        self.planner = replace(self.planner, mode=Mode.EDGE)
        yield from self._observe(self.session.lose_cloud())

    def _release(self, *, graceful: bool) -> None:
        if self.link is not None and not graceful:
            self.link.cancel()
        if self.drafter is not None:
            self.drafter.close()
