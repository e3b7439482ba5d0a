"""The loop that writes one generation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from random import Random

from chaperone_common.clock import Clock
from chaperone_common.errors import (
    Cancelled,
    ChaperoneError,
    CloudLost,
    CloudTimeout,
    CloudUnavailable,
    InternalError,
    InvalidRequest,
    ModelMismatch,
    Overloaded,
    PeerMismatch,
)
from chaperone_common.frames import Close, Open, ServerFrame, Verdict
from chaperone_common.session import (
    Audited,
    Committed,
    DeviceSession,
    Drafted,
    Event,
    Failed,
    Finished,
    Retracted,
    SessionEvent,
    State,
    Unverified,
)
from chaperone_common.types import FinishReason, Mode, OnDeviation, Proposal
from edge_client.cancellation import Interrupt
from edge_client.engine.measurement import Stopwatch
from edge_client.engine.speculation import Speculation
from edge_client.gate import Gate
from edge_client.link.connection import Connection
from edge_client.planner import CatchUp, Decision, Draft, Estimates, HandOver, Pipeline, Planner, Send, Situation, Wait
from edge_client.ports import Assessor, CloudLink, Drafter, DraftText, OutputText


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How one generation is run; deadlines are in milliseconds."""

    open_deadline_ms: float
    verification_deadline_ms: float
    max_span_tokens: int = 256  # that one Draft may carry, branches included
    reconnect_timeout_ms: float = 0.0  # for which a lost cloud is sought again; 0: not at all
    continue_without_cloud: bool = False
    closing_audit: bool = False  # wait for the audit of the unread tail
    audit_share: float = 1.0  # of the generations about which nothing was asked
    on_deviation: OnDeviation = OnDeviation.KEEP
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
        planner: Planner,
        estimates: Estimates,
        assessor: Assessor | None = None,
        output: OutputText,
        provisional: DraftText | None = None,
        clock: Clock,
        settings: EngineSettings,
        interrupt: Interrupt | None = None,
        cloud_lost: ChaperoneError | None = None,
        explain: Callable[[Decision], None] | None = None,
    ) -> None:
        """`connect` makes a link to the cloud, not yet opened, whenever one is needed; None if there is no cloud.

        `interrupt` bounds the generation's time; `cloud_lost` says why there is no cloud where there should be one.
        `estimates` are shared by the generations of a client. `explain` is told every decision; `position` and `at_ms`
        among its figures are the length of the text, prompt included, and the time since the engine was made.
        """
        self.opening = opening
        self.session = DeviceSession(opening, limit=limit, on_deviation=settings.on_deviation)
        self.speculation = Speculation(self.session, drafter, estimates, clock)
        self.pipeline = Pipeline(estimates, planner.mode)
        self.gate = gate
        self._gate_is_open = True
        self.assessor = assessor
        self.planner = planner
        self.output = output
        self.provisional = provisional
        self.settings = settings
        self.explain = explain
        self.watch = Stopwatch(clock)
        self._clock = clock
        self._made_ms = self._now_ms
        # Session ids differ, so devices that lose one cloud together do not come back together.
        self._random = Random(opening.session_id)  # noqa: S311
        self.cloud = Connection(connect, clock, self._random, reconnect_timeout_ms=settings.reconnect_timeout_ms)
        self._interrupt = interrupt or Interrupt()
        self._cloud_lost = cloud_lost

    @property
    def audit_pending(self) -> bool:
        """True if nothing more is written, and the cloud has yet to audit some of it.

        Call `audit` then: until it returns, the gate stays open and counts these tokens as unread.
        """
        return self.session.audit_pending

    def cancel(self) -> None:
        """End the generation from outside, and its stream at once: it fails with Cancelled."""
        self._interrupt.stop(Cancelled("generation: the client was closed"))
        self.cloud.cancel()

    async def stream(self) -> AsyncGenerator[Event, None]:
        """Yield events; the last one is Finished or Failed. Leaving early cancels the generation."""
        ended = False
        try:
            try:
                for event in await self._begin():
                    yield event
                async with aclosing(self._write()) as events:
                    async for event in events:
                        yield event
                for event in await self._end():
                    yield event
                ended = True
                rest = self.output.flush()
                if self.output.stopped:  # a stop string may be complete only with the text
                    self.session.finish_reason = FinishReason.STOP
                reason = self.session.finish_reason
                assert reason is not None, "the loop ends only when the session has"
                yield Finished(reason, self.watch.stats(self.session, self.cloud), rest)
            except ChaperoneError as error:
                if isinstance(error, Cancelled):
                    ended = ended or self._leave()
                # What the output still holds back, a part of a character, say, is told by the generation that resumes.
                yield Failed(error, self.watch.stats(self.session, self.cloud))
        except (GeneratorExit, asyncio.CancelledError):
            ended = ended or self._leave()
            raise
        finally:
            self._release(graceful=ended)

    async def _write(self) -> AsyncGenerator[Event, None]:
        while self.session.finish_reason is None:
            self._interrupt.check()
            try:
                for frame, at in self.cloud.ready():
                    for received in self._receive(frame, at):
                        yield received
                    if self.session.finish_reason is not None:
                        return
                for acted in await self._act():
                    yield acted
            except (CloudLost, Overloaded, InternalError, InvalidRequest, PeerMismatch) as error:
                lost = self._loss(error)
                if await self._reconnect(lost):
                    continue
                outcome = self.cloud.outcome(lost)
                if not self.settings.continue_without_cloud or self.speculation.drafter is None:
                    raise outcome from None
                for event in self._go_on_alone(outcome):
                    yield event

    def _loss(self, error: ChaperoneError) -> ChaperoneError:
        """Return the error as a loss of the cloud where it is one; raises any other.

        A cloud that comes back in mid-text may take smaller spans than before, or be another model.
        """
        match error:
            case InvalidRequest() if self.session.outgrown:
                return CloudUnavailable(error.message)
            case ModelMismatch() if self.cloud.reopened:
                return error
            case InvalidRequest() | PeerMismatch():
                raise error
            case _:
                return error

    async def _act(self) -> list[SessionEvent]:
        decision = self.planner.decide(self._situation())
        if self.explain is not None:
            where = {"position": len(self.session.text), "at_ms": self._now_ms - self._made_ms}
            self.explain(replace(decision, figures=where | decision.figures))
        match decision.action:
            case Draft():
                return await self._draft(decision.action)
            case CatchUp():
                await self._catch_up()
            case Send():
                self._send(decision.action)
            case HandOver(tokens):
                self._send(Send(0, tokens - 1))
            case Wait():
                await self._wait()
        return []

    def _situation(self) -> Situation:
        return Situation(self.session, self.speculation.tree, self.pipeline, self._now_ms, self.speculation.read)

    @property
    def _now_ms(self) -> float:
        return self._clock.now() * 1e3

    @property
    def _patience_ms(self) -> float:
        """How long the next frame may take: the answer to the Open comes at once, the one after the prompt was read."""
        return self._answer_ms if self.session.opened else self.settings.verification_deadline_ms

    @property
    def _answer_ms(self) -> float:
        """How long an answer to a Draft may take; the first ones wait until the cloud has read the prompt."""
        settings = self.settings
        return settings.verification_deadline_ms if self.session.prefilled else settings.open_deadline_ms

    async def _draft(self, action: Draft) -> list[SessionEvent]:
        with self.watch.edge_compute():
            proposal = await self._interrupt.bounded(self.speculation.draft(action))
        return self._append(proposal) if proposal is not None else []

    async def _catch_up(self) -> None:
        with self.watch.edge_compute():
            await self._interrupt.bounded(self.speculation.catch_up())

    def _append(self, proposal: Proposal) -> list[SessionEvent]:
        if self.assessor is not None:
            with self.watch.edge_compute():
                proposal = self.assessor.assess(proposal)
        ends = proposal.token_id in self.session.eos_token_ids
        # End-of-text cannot be taken back, so nobody but the cloud may skip it. Without a cloud there is nobody to ask.
        fires = self.cloud.there and (self.gate.fires(proposal.signal) or ends)
        return self._observe(self.session.draft(proposal, fires=fires))

    def _send(self, action: Send) -> None:
        session = self.session
        most = session.max_span_tokens or self.settings.max_span_tokens
        unsent = len(session.text) - session.sent
        tokens = min(most, unsent if action.tokens is None else min(action.tokens, unsent))
        branches = self.speculation.tree.branch_tokens(session.sent, session.sent + tokens, action.branches)
        frame = session.send(
            continuation_tokens=action.continuation_tokens,
            max_tokens=tokens,
            deadline_ms=int(self._answer_ms),
            branches=branches[: most - tokens],  # a parent comes before its child, so the rest is whole
        )
        self.pipeline.sent(len(frame.token_ids) + len(frame.branches), self._now_ms)
        self.cloud.send(frame)

    def _receive(self, frame: ServerFrame, at: float) -> list[SessionEvent]:
        if isinstance(frame, Verdict):
            self.watch.answered()
        events = self._apply(frame, at)
        for proposal in self.speculation.foreseen():
            if not self.session.exhausted and self.session.finish_reason is None:
                events += self._append(proposal)
        return events

    def _apply(self, frame: ServerFrame, at: float) -> list[SessionEvent]:
        session, revision = self.session, self.session.revision
        span = session.spans[0] if session.spans and session.spans[0].token_ids else None
        self.pipeline.answered(frame, at * 1e3)
        events = self._observe(session.apply(frame))
        stood = isinstance(frame, Verdict) and span is not None and frame.revision == revision
        self.pipeline.keep(len(session.spans), begins_takeover=stood and session.following)
        owed = bool(self.session.spans) or not self.session.prefilled
        self.cloud.heard(caught_up=isinstance(frame, Verdict) or not owed)
        return events

    async def _wait(self) -> None:
        self.watch.waiting(for_verdict=bool(self.session.spans) and not self.session.following)
        in_vain_ms = await self._interrupt.bounded(self.cloud.wait(self._patience_ms))
        if in_vain_ms is not None:
            message = (
                f"cloud: no answer within {in_vain_ms:.0f} ms at position {self.session.final}; it is overloaded or "
                "the link is down. Raise cloud.verification_deadline_ms (or cloud.open_deadline_ms for long prompts), "
                "or resume from the committed tokens"
            )
            self.session.fail(CloudTimeout(message))

    def _observe(self, events: Iterable[SessionEvent]) -> list[SessionEvent]:
        """Keep model, gate, clock and text in step with the session; return the events with their text.

        A completed stop string ends the text, and events after it are dropped.
        """
        shown: list[SessionEvent] = []
        for event in events:
            self.speculation.follow(event)
            self._tell(event)
            match event:
                case Drafted(position, token_id):
                    self.watch.token_shown()
                    shown.append(replace(event, text=self._drafted_text(position, token_id)))
                case Retracted(position):
                    if self.provisional is not None:
                        self.provisional.retract(position)
                    shown.append(event)
                case Audited():
                    shown.append(event)
                case Committed():
                    if self.provisional is not None and event.position == self.provisional.end:  # the cloud's own
                        self.provisional.push(event.position, event.token_id)
                    self.watch.token_shown()
                    self.watch.token_committed()
                    text, stopped = self.output.push(event.token_id)
                    shown.append(replace(event, text=text))
                    if stopped:
                        withdrawn = self.session.finish_at(event.position + 1)
                        for one in withdrawn:
                            self._tell(one)
                        return shown + withdrawn
        return shown

    def _drafted_text(self, position: int, token_id: int) -> str:
        return self.provisional.push(position, token_id) if self.provisional is not None else ""

    def _tell(self, event: SessionEvent) -> None:
        """Let gate and risk know what became of the text."""
        if self._gate_is_open:
            self.gate.follow(event)
        if self.assessor is not None:
            self.assessor.follow(event)

    async def _begin(self) -> list[Event]:
        self.watch.start()
        events: list[Event] = []
        if self.cloud.there:
            self.pipeline.opened(self._now_ms, len(self.session.text))
            await self.cloud.open(self.opening)
        elif self.planner.mode is not Mode.EDGE:
            events = self._go_on_alone(self._cloud_lost or CloudUnavailable("cloud: there is none"))
        if not self.settings.warm_start:
            return events
        if self.speculation.drafter is not None and len(self.session.text) > 1:
            with self.watch.edge_compute():
                await self._interrupt.bounded(self.speculation.read_on(self.session.text[:-1]))
        while self.cloud.there and not self.session.prefilled:
            try:
                for frame, at in self.cloud.ready():
                    self._receive(frame, at)
                if not self.session.prefilled:
                    await self._wait()
            except (CloudLost, Overloaded) as error:
                if not await self._reconnect(error):
                    raise self.cloud.outcome(error) from None
        self.watch.warm()
        return events

    async def _end(self) -> list[SessionEvent]:
        """Close the stream; returns what the closing audit says, if that is waited for."""
        self.watch.stop()
        events: list[SessionEvent] = []
        if not self.cloud.there:
            return events
        all_read = self.session.read >= self.session.final
        if self.cloud.seeking and all_read and not self.settings.closing_audit:  # the cloud has nothing left to tell
            self.cloud.cancel()
            return events
        self.cloud.send(self._close())
        self.cloud.close()
        if self.settings.closing_audit:
            events += await self.audit()
        else:
            self._interrupt = Interrupt()  # nobody waits for the audit, so the user's time does not count for it
        return events

    async def audit(self) -> list[SessionEvent]:
        """Wait for the answer to the Close, if there is one to come; also for a text that has been told."""
        events: list[SessionEvent] = []
        try:
            while self.session.state is State.CLOSING:
                for frame, _ in self.cloud.ready():
                    self.cloud.heard(caught_up=False)
                    events += self._observe(self.session.apply(frame))
                if self.session.state is State.CLOSING:
                    await self._wait()
        except ChaperoneError:  # the text is complete without it; `deviation_bound` counts what stays unread
            self.cloud.cancel()
        finally:
            self._close_gate()
        return events

    def _close(self) -> Close:
        """Of the generations about which nothing was asked, a share is audited."""
        share = self.settings.audit_share
        if self.session.tally.requests:
            return self.session.close()
        if self._random.random() < share:
            return self.session.close(audit_share=share)
        self._close_gate()  # no audit comes: these tokens are counted with those of the texts that are audited
        return self.session.close(audit_share=0.0)

    def _leave(self) -> bool:
        """The user stops listening: skipped tokens that are final are audited nevertheless; whether there are any."""
        session = self.session
        writing = session.state in (State.DEVICE_WRITES, State.CLOUD_WRITES)
        if not (self.cloud.there and writing and self.planner.mode is Mode.GATED and session.read < session.final):
            return False
        self.cloud.send(session.close())
        self.cloud.close()
        self._interrupt = Interrupt()  # nobody waits for the audit, so the user's time does not count for it
        return True

    async def _reconnect(self, error: ChaperoneError) -> bool:
        """Open the session anew on another stream, if that may help; what is provisional stays so meanwhile."""
        pause_ms = self.cloud.pause_ms(error)
        if pause_ms is None:
            return False
        self.pipeline.opened(self._now_ms + pause_ms)  # a pause before it is no part of the round trip
        await self.cloud.reopen(self.session.reopen(), after_ms=pause_ms)
        return True

    def _go_on_alone(self, error: ChaperoneError) -> list[Event]:
        self.cloud.hang_up()
        self._close_gate()
        self.planner = self.planner.alone()
        return [Unverified(self.session.final, error), *self._observe(self.session.lose_cloud())]

    def _release(self, *, graceful: bool) -> None:
        if not graceful:
            self.cloud.cancel()
        if not (graceful and self.audit_pending):
            self._close_gate()
        self.speculation.close()

    def _close_gate(self) -> None:
        """Report nothing more to the gate, so that it waits for no audit."""
        if self._gate_is_open:
            self._gate_is_open = False
            self.gate.close()
