"""The loop that writes one generation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from random import Random

from chaperone_common.clock import Clock
from chaperone_common.conditioning import Encoding
from chaperone_common.errors import (
    Cancelled,
    ChaperoneError,
    CloudUnavailable,
)
from chaperone_common.frames import Encoded, Open, Opened, ServerFrame, Verdict
from chaperone_common.session import DeviceSession, Failed, Finished, SessionEvent, State, Unverified
from chaperone_common.stats import GenerationStats, promises_hold
from chaperone_common.types import FinishReason, Mode, Proposal, SessionId
from edge_client.cancellation import Interrupt
from edge_client.engine.closing import Closing
from edge_client.engine.conditioning import Conditioning, Wish
from edge_client.engine.followers import Followers
from edge_client.engine.measurement import Stopwatch
from edge_client.engine.settings import EngineSettings
from edge_client.engine.speculation import Speculation
from edge_client.engine.streams import STREAM_ERRORS, Streams
from edge_client.engine.unaudited import UnauditedText
from edge_client.events import Event, Planned
from edge_client.gate import CloudShareGuard, Gate, GateUntilClosed
from edge_client.link.connection import Connection, Route, no_answer
from edge_client.planner import Estimates, Pipeline, Planner, Situation
from edge_client.planner.actions import Action, CatchUp, Decision, DraftForest, DraftToken, HandOver, Send, Wait
from edge_client.planner.rereading import worth_reading_again
from edge_client.ports import Corrections, Drafter, OutputText, RiskModel


class Engine:
    """One generation: it drafts on the device, asks the cloud where the gate fires, and yields the events."""

    def __init__(
        self,
        opening: Open,
        *,
        limit: int,
        drafter: Drafter | None,
        routes: Sequence[Route],
        gate: Gate,
        planner: Planner,
        estimates: Estimates,
        risk_model: RiskModel | None = None,
        corrections: Corrections | None = None,
        output: OutputText,
        clock: Clock,
        settings: EngineSettings,
        interrupt: Interrupt | None = None,
        cloud_lost: ChaperoneError | None = None,
        generation_id: str = "",
        explain: bool = False,
        known_to_cloud: tuple[SessionId, int] | None = None,
        wish: Wish | None = None,
        condition: Callable[[Encoding], None] = lambda encoding: None,
    ) -> None:
        """Prepare a generation; `stream` runs it.

        `routes` are the ways to the cloud, in the order to use them. Without one there is no cloud.
        `interrupt` bounds the generation's time. `cloud_lost` is the reason if a cloud was expected and is missing.
        `known_to_cloud` is an earlier session, and how many of its tokens the prompt begins with.
        `wish` is for an encoding of the prompt; `condition` lets the model read its text with one.
        The generations of a client share their `estimates`, and the `corrections` that they receive. With `explain`
        the stream also has each decision of the planner.
        """
        self.opening = opening
        self.session = DeviceSession(
            opening, limit=limit, on_deviation=settings.on_deviation, vocabulary_size=settings.vocabulary_size
        )
        self.speculation = Speculation(self.session, drafter, estimates, clock, corrections)
        self._cached_tokens = self.speculation.fed_length  # from the turn before
        self.pipeline = Pipeline(estimates, planner.mode)
        self.gate = GateUntilClosed(gate)
        self.guard = CloudShareGuard(self.session, settings.cloud_share)
        self.risk_model = risk_model
        self.planner = planner
        self._mode = planner.mode  # of the request, also when the device writes on alone
        self.output = output
        self.settings = settings
        self._generation_id = generation_id
        self._explain = explain
        self.watch = Stopwatch(clock)
        self._clock = clock
        self._made_ms = self._now_ms
        # Session ids differ, so devices that lose one cloud together do not come back together.
        self._random = Random(opening.session_id)  # noqa: S311 # nosec B311
        self.cloud = Connection(routes, clock, self._random, reconnect_timeout_ms=settings.reconnect_timeout_ms)
        self._followers = Followers(self.session, self.speculation, self.gate, risk_model, self.watch, output)
        self._conditioning = Conditioning(wish, condition)
        self._streams = Streams(self.session, self.cloud, self.pipeline, clock, known_to_cloud, self._conditioning)
        self._closing = Closing(
            self.session, self.cloud, self._streams, self._followers, self.gate, settings, self._random
        )
        self._interrupt = interrupt or Interrupt()
        self._cloud_lost = cloud_lost

    @property
    def audit_pending(self) -> bool:
        """True if the text is complete, and the cloud has yet to audit some of it.

        Call `audit` then. Until it returns, the gate stays open and counts these tokens as unread.
        """
        return self.session.audit_pending

    def unaudited(self) -> UnauditedText | None:
        """Return the final tokens that no audit of this stream has reached, with their text; None if there are none.

        Call it once, after `stream`, and after `audit` if that is pending. A text that the settings leave unaudited
        has none.
        """
        return self._closing.unaudited()

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
                yield self._finished()
            except ChaperoneError as error:
                if isinstance(error, Cancelled):
                    ended = ended or self._leave()
                # The output may hold back a part of a character: the generation that resumes shows it.
                yield Failed(error, self._stats())
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
                await self._take_up_if_worth()
                decision = self._decide()
                if self._explain:
                    yield self._planned(decision)
                for acted in await self._act(decision.action):
                    yield acted
            except STREAM_ERRORS as error:
                if (lost := await self._streams.recover(error)) is not None:
                    for event in self._go_on_alone(lost):
                        yield event

    async def _take_up_if_worth(self) -> None:
        """Let the device's model read the text again, with the encoding, if that has arrived and saves time."""
        if not self._conditioning.arrived or self.session.exhausted:
            return
        left = self.session.limit - len(self.session.text)
        costs = self.pipeline.estimates.costs()
        if worth_reading_again(self._conditioning.gain, left, len(self.session.text), costs):
            await self._take_up()

    async def _take_up(self) -> None:
        """Let the device's model read the text with the encoding, at once: branches fork off what it has read."""
        self._use_encoding()
        with self.watch.edge_compute():
            await self._interrupt.bounded(self.speculation.feed(self.session.text[self.speculation.fed_length :]))

    def _use_encoding(self) -> None:
        # What the model held of the prompt after these rows is read again, and saved nothing.
        self._cached_tokens = min(self._cached_tokens, self._conditioning.used_tokens)
        self.speculation.read_again(self._conditioning.used_tokens)
        self._conditioning.take_up()

    def _decide(self) -> Decision:
        fed, takeovers = self.speculation.fed_length, self.guard.limit is None
        tree = self.speculation.tree
        return self.planner.decide(Situation(self.session, tree, self.pipeline, self._now_ms, fed, takeovers))

    def _planned(self, decision: Decision) -> Planned:
        where = {"position": len(self.session.text), "at_ms": self._now_ms - self._made_ms}
        return Planned(self._generation_id, replace(decision, figures=where | decision.figures))

    async def _act(self, action: Action) -> list[Event]:
        match action:
            case DraftToken():
                return await self._draft(action)
            case CatchUp():
                await self._catch_up()
            case Send():
                self._send(action)
            case HandOver() if self.guard.tokens_left == 0:  # from a planner that does not know of the ceiling
                return await self._draft(DraftToken())
            case HandOver(tokens):
                self._send(Send(0, tokens - 1))
            case Wait():
                await self._wait()
            case DraftForest():
                raise TypeError("a forest is for beams, and this planner plans a single text")
        return []

    @property
    def _now_ms(self) -> float:
        return self._clock.now() * 1e3

    async def _draft(self, action: DraftToken) -> list[Event]:
        with self.watch.edge_compute():
            proposal = await self._interrupt.bounded(self.speculation.draft(action))
        return self._append(proposal) if proposal is not None else []

    async def _catch_up(self) -> None:
        with self.watch.edge_compute():
            await self._interrupt.bounded(self.speculation.catch_up())

    def _append(self, proposal: Proposal) -> list[Event]:
        if self.risk_model is not None:
            with self.watch.edge_compute():
                proposal = self.risk_model.with_risk(proposal)
        ends = proposal.token_id in self.session.eos_token_ids
        # End-of-text cannot be taken back, so the cloud must confirm it. Without a cloud nothing fires.
        fires = self.cloud.is_up and (self.gate.fires(proposal.signal) or ends)
        if self.cloud.is_up:
            self.pipeline.drafted(fires=fires)
        reached = self.guard.check() if fires else []
        if self.guard.error is not None:
            self._interrupt.stop(self.guard.error)
            return []
        held = fires and self.guard.held
        return [
            *reached,
            *self._followers.observe(self.session.draft(proposal, fires=fires and not held, unasked=held)),
        ]

    def _send(self, action: Send) -> None:
        session = self.session
        start, most = session.sent_length, session.max_span_tokens or self.settings.max_span_tokens
        tokens = min(most, len(session.text) - start, most if action.tokens is None else action.tokens)
        branches = self.speculation.tree.branch_tokens(start, start + tokens, action.branches)
        branches = branches[: most - tokens]  # a parent comes before its child, so the rest is whole
        continuation_tokens, branches = self.guard.fit(action.continuation_tokens, branches)
        frame = session.send(
            continuation_tokens=continuation_tokens,
            max_tokens=tokens,
            deadline_ms=int(self.settings.answer_ms(session)),
            branches=branches,
        )
        self.pipeline.sent(len(frame.token_ids) + len(frame.branches), self._now_ms)
        self.cloud.send(frame)

    def _receive(self, frame: ServerFrame, at: float) -> list[Event]:
        session, revision = self.session, self.session.revision
        if isinstance(frame, Encoded):
            self._conditioning.receive(frame)
            self.cloud.on_frame(idle=False)
            return []
        if isinstance(frame, Opened) and frame.prefilled:
            self._conditioning.check_whole()
        span = session.spans[0] if session.spans and session.spans[0].token_ids else None
        if isinstance(frame, Verdict):
            self.watch.answered()
        self.pipeline.answered(frame, at * 1e3)
        events: list[Event] = [*self._followers.observe(session.apply(frame))]
        stood = isinstance(frame, Verdict) and span is not None and frame.revision == revision
        self.pipeline.keep(len(session.spans), begins_takeover=stood and session.following)
        owes_answer = bool(session.spans) or not session.prefilled
        self.cloud.on_frame(idle=isinstance(frame, Verdict) or not owes_answer)
        for proposal in self.speculation.take_adopted():
            if not session.exhausted and session.finish_reason is None:
                events += self._append(proposal)
        return events

    async def _wait(self) -> None:
        self.watch.waiting(for_verdict=bool(self.session.spans) and not self.session.following)
        waited_ms = await self._interrupt.bounded(self.cloud.wait(self.settings.next_frame_ms(self.session)))
        if waited_ms is not None:
            self.session.fail(no_answer(waited_ms, self.session.final_length))

    async def _begin(self) -> list[Event]:
        self.watch.start()
        if self.cloud.is_up:
            await self._streams.open()
        if self._mode is Mode.CONDITIONED and self._conditioning.request is not None:
            events = await self._wait_for_encoding()
            if self.settings.warm_start:
                await self._warm_up()
            return events
        if self.settings.warm_start:
            await self._warm_up()
        if self.cloud.is_up or (self.planner.mode.writes_alone and self._cloud_lost is None):
            return []
        return self._without_cloud(self._cloud_lost or CloudUnavailable("cloud: there is none"))

    @property
    def text_of_cloud(self) -> Sequence[int]:
        """The text that the cloud holds after the Close; empty without one, or if it may have refused the prefix."""
        return () if self._streams.prefix_unanswered else self._closing.text

    async def _warm_up(self) -> None:
        """Wait until both ends hold the prompt's KV."""
        unread = self.session.text[self.speculation.fed_length : -1]
        if self.speculation.drafter is not None and unread:
            with self.watch.edge_compute():
                await self._interrupt.bounded(self.speculation.feed(unread))
        if (lost := await self._until_prefilled()) is not None:
            raise self.cloud.outcome(lost)
        self.watch.warm()

    async def _wait_for_encoding(self) -> list[Event]:
        """Wait for the encoding of the prompt, and go on without the cloud; return the events of a loss."""
        lost = await self._until_prefilled()
        if lost is None:
            self._closing.leave()
        elif self._conditioning.arrived:  # only the report after it is missing
            self.cloud.hang_up()
        else:
            return self._go_on_alone(lost)
        self.watch.encoded()
        self._use_encoding()
        self.gate.close()
        return []

    async def _until_prefilled(self) -> ChaperoneError | None:
        return await self._streams.until(lambda: self.session.prefilled, self._receive, self._wait)

    async def _end(self) -> list[SessionEvent]:
        """Close the stream; return the events of the closing audit, if the settings ask to wait for it."""
        self.watch.stop()
        if not self.cloud.is_up:
            return []
        all_read = self.session.read_length >= self.session.final_length
        if self.cloud.seeking and all_read and not self.settings.closing_audit:
            self.cloud.cancel()  # the cloud has nothing left to audit
            return []
        self._closing.send()
        if self.settings.closing_audit:
            return await self.audit()
        self._end_time_limit()
        return []

    def _finished(self) -> Finished:
        rest = self.output.flush()
        if self.output.stopped:  # a stop string may be complete only with the text
            self.session.finish_reason = FinishReason.STOP
        reason = self.session.finish_reason
        assert reason is not None, "the loop ends only when the session has"
        return Finished(reason, self._stats(), rest)

    def _stats(self) -> GenerationStats:
        stats = self.watch.stats(self.session, self.cloud, self.guard, self._cached_tokens)
        stats = replace(stats, conditioned_tokens=self._conditioning.used_tokens)
        holds = promises_hold(
            self._mode,
            unverified=bool(self.session.tally.unverified_tokens),
            earlier=self.settings.committed_promises_hold,
            resumed=bool(self.opening.committed_token_ids),
        )
        return replace(stats, generation_id=self._generation_id, promises_hold=holds)

    async def audit(self) -> list[SessionEvent]:
        """Wait for the answer to the Close, if one is to come, and return its events. `stream` may have ended."""
        return await self._closing.audit(self._wait)

    def _end_time_limit(self) -> None:
        """End the time limit: it does not include an audit that the user does not await."""
        self._interrupt = Interrupt()

    def _leave(self) -> bool:
        """Close the stream if final tokens are unread, so that the cloud audits them; return whether there are any."""
        session = self.session
        writing = session.state in (State.DEVICE_WRITES, State.CLOUD_WRITES)
        unread = writing and session.read_length < session.final_length
        audits = self.cloud.is_up and unread and self.planner.mode is Mode.GATED
        if audits:
            self._closing.send_early()
            self._end_time_limit()
        return audits

    def _go_on_alone(self, error: ChaperoneError) -> list[Event]:
        """Write on without the lost cloud; raise the loss unless the settings allow that."""
        outcome = self.cloud.outcome(error)
        if not self.settings.continue_without_cloud or self.speculation.drafter is None:
            raise outcome from None
        return self._without_cloud(outcome)

    def _without_cloud(self, error: ChaperoneError) -> list[Event]:
        self.cloud.hang_up()
        self.gate.close()
        self.planner = self.planner.alone()
        return [Unverified(self.session.final_length, error), *self._followers.observe(self.session.lose_cloud())]

    def _release(self, *, graceful: bool) -> None:
        if not graceful:
            self.cloud.cancel()
        if not (graceful and self.audit_pending):
            self.gate.close()
        self.speculation.close()
