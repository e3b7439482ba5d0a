"""The loop that writes one generation with beams: forests of the device's model, verified by the cloud."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from chaperone_common.beams.device import DeviceBeams, Gain
from chaperone_common.beams.forest import Forest, Numbering
from chaperone_common.beams.frames import BeamVerdict
from chaperone_common.clock import Clock
from chaperone_common.errors import Cancelled, ChaperoneError, ProtocolViolation, error_from_status
from chaperone_common.frames import Close, Closed, Failure, Open, Opened, ServerFrame
from chaperone_common.session import Failed, Finished
from chaperone_common.session.patience import Patience
from chaperone_common.stats import EnergyModel, GenerationStats, promises_hold
from chaperone_common.types import FinishReason, Mode, Origin
from edge_client.beams.costs import ForestEstimates
from edge_client.beams.drafting import ForestDrafter
from edge_client.beams.shape import ForestPlanner, Limits, Shape, Situation
from edge_client.cancellation import Interrupt
from edge_client.engine.beam_output import BeamOutput
from edge_client.engine.settings import EngineSettings
from edge_client.engine.unaudited import UnauditedText
from edge_client.events import Event, Planned
from edge_client.link.connection import POSSIBLE_LOSSES, Connection, Route, loss_of, no_answer
from edge_client.planner import Decision, DraftForest, HandOver
from edge_client.ports import OutputText
from edge_client.text.output import CommittedText


@dataclass(slots=True)
class _Counts:
    """Measurements of one generation."""

    started_ms: float
    opened_ms: float | None = None
    first_shown_ms: float | None = None
    first_final_ms: float | None = None
    edge_compute_ms: float = 0.0
    cloud_compute_us: int = 0
    cloud_queue_us: int = 0
    prefill_us: int = 0
    cached_tokens: int | None = None  # of the prompt, when the first stream was opened
    round_trips: int = 0
    reconnects: int = 0


class BeamEngine:
    """One generation with beams. It has the methods of `Engine`, and nothing to audit: the cloud verifies all."""

    audit_pending = False
    text_of_cloud: Sequence[int] = ()

    def __init__(
        self,
        opening: Open,
        *,
        mode: Mode,
        width: int | None,
        limit: int,
        committed: int,
        drafter: ForestDrafter | None,
        planner: ForestPlanner,
        limits: Limits,
        estimates: ForestEstimates,
        routes: Sequence[Route],
        output: OutputText,
        new_text: Callable[[], CommittedText],
        clock: Clock,
        settings: EngineSettings,
        interrupt: Interrupt | None = None,
        generation_id: str = "",
        explain: bool = False,
    ) -> None:
        """Prepare a generation; `stream` runs it.

        `opening` has the beams. `width` is W_S, or None if the planner chooses it. A text is full at `limit` tokens,
        its prompt included. `committed` tokens are final from an earlier generation. Without a `drafter` the cloud
        draws all layers. `new_text` begins the text of a beam. The generations of a client share `planner` and
        `estimates`.
        """
        assert opening.beams is not None, "the caller asks for beams"
        self.opening = opening
        self._mode = mode
        self._width = width
        self._prompt_length = len(opening.prompt_token_ids)
        self._drafter = drafter
        self._planner = planner
        self._limits = limits
        self._estimates = estimates
        self._settings = settings
        self._stops = opening.beams.stops
        self._clock = clock
        self._interrupt = interrupt or Interrupt()
        self._generation_id = generation_id
        self._explain = explain
        self.cloud = Connection(
            routes,
            clock,
            Random(opening.session_id),  # noqa: S311 # nosec B311
            reconnect_timeout_ms=settings.reconnect_timeout_ms,
        )
        self._beams = DeviceBeams(
            opening.beams, limit - self._prompt_length, opening.eos_token_ids, settings.vocabulary_size
        )
        self._output = BeamOutput(self._beams.progress, new_text, output, self._prompt_length, committed)
        self._text = output
        self._committed = committed
        self._patience = Patience()
        self._prefilled = False
        self._shape = Shape(0, 0)  # of the forest in flight
        self._texts = 0  # drafted in it
        self._sent_ms: float | None = None  # None once its answer has been timed
        self._layer_ms: float | None = None  # when the last layer arrived, while the cloud draws alone
        self._origins: list[Origin] = []  # of committed tokens
        self._counts = _Counts(self._now_ms)
        self._finish_reason: FinishReason | None = None

    def unaudited(self) -> UnauditedText | None:
        """Return None: no token is final before the cloud has verified it."""
        return None

    async def audit(self) -> list[Event]:
        """Return nothing, as there is nothing to audit."""
        return []

    def cancel(self) -> None:
        """End the generation from outside, and its stream at once: it fails with Cancelled."""
        self._interrupt.stop(Cancelled("generation: the client was closed"))
        self.cloud.cancel()

    async def stream(self) -> AsyncGenerator[Event, None]:
        """Yield events; the last one is Finished or Failed. Leaving early cancels the generation."""
        ended = False
        try:
            try:
                self._counts.started_ms = self._counts.opened_ms = self._now_ms
                await self.cloud.open(self.opening)
                while not self._beams.progress.done:
                    for event in await self._step():
                        yield event
                self.cloud.send(Close(self._prompt_length + self._beams.progress.length, ()))
                self.cloud.part()
                ended = True
                yield self._finished()
            except ChaperoneError as error:
                yield Failed(error, self._stats())
        finally:
            if not ended:
                self.cloud.cancel()
            if self._drafter is not None:
                self._drafter.close()

    async def _step(self) -> list[Event]:
        """Take what has arrived; else send the next forest, or wait for the answer."""
        self._interrupt.check()
        events: list[Event] = []
        try:
            for frame, at in self.cloud.ready():
                events += self._receive(frame, at * 1e3)
            if not events and self._beams.waits:
                await self._wait()
            elif not events:
                events += await self._send()
        except POSSIBLE_LOSSES as error:
            await self._recover(error)
        return events

    async def _send(self) -> list[Event]:
        """Draft the next forest, and send it; or let the cloud draw some layers alone."""
        progress, began_ms = self._beams.progress, self._now_ms
        shape, numbering, forest, layers = Shape(0, 0), progress.numbering(), Forest(), progress.layers_left
        decision = self._decide()
        match decision.action:
            case DraftForest(width, depth) if self._drafter is not None:
                stops = self._output.stops if self._stops else None
                draft = await self._interrupt.bounded(self._drafter.draft(progress, Shape(width, depth), stops))
                self._counts.edge_compute_ms += self._now_ms - began_ms
                numbering, forest, layers = draft.numbering, draft.forest(), 1
                shape = Shape(width, forest.depth)
            case HandOver(tokens):
                layers = 1 if self._stops else tokens  # the device reads each layer before the next one
            case _:
                raise TypeError(f"{decision.action} is for a single text, or needs a drafter")
        self._shape, self._texts = shape, len(numbering.nodes) - len(progress.texts)
        self.cloud.send(self._beams.send(numbering, forest, layers=layers, deadline_ms=int(self._answer_ms)))
        self._sent_ms = self._now_ms if self._prefilled else None  # else the answer waits for the prompt
        self._counts.round_trips += 1
        if not self._explain:
            return []
        where = {"position": self._prompt_length + progress.length, "at_ms": began_ms - self._counts.started_ms}
        return [Planned(self._generation_id, replace(decision, figures=where | decision.figures))]

    def _decide(self) -> Decision:
        progress = self._beams.progress
        if self._drafter is None:
            return Decision(HandOver(progress.layers_left), "the cloud writes alone")
        situation = Situation(len(progress.texts), progress.layers_left, self._limits, self._width, self._stops)
        return self._planner.decide(self._estimates.costs(), situation)

    async def _wait(self) -> None:
        waited_ms = await self._interrupt.bounded(self.cloud.wait(self._answer_ms))
        if waited_ms is not None:
            raise no_answer(waited_ms, self._prompt_length + self._beams.progress.length)

    @property
    def _answer_ms(self) -> float:
        settings = self._settings
        return settings.verification_deadline_ms if self._prefilled else settings.open_deadline_ms

    def _receive(self, frame: ServerFrame, now_ms: float) -> list[Event]:
        counts, events = self._counts, list[Event]()
        match frame:
            case Opened():
                counts.cloud_compute_us += frame.compute_us
                counts.cloud_queue_us += frame.queue_us
                counts.prefill_us += frame.compute_us
                if frame.max_span_tokens:
                    self._limits = self._limits._replace(texts=frame.max_span_tokens)
                if frame.prefilled:
                    self._prefilled = True
                    counts.cached_tokens = frame.cached_tokens if counts.cached_tokens is None else counts.cached_tokens
                elif counts.opened_ms is not None:
                    self._estimates.travelled(now_ms - counts.opened_ms)
                if self.cloud.reopened and not frame.prefilled:
                    counts.reconnects += 1
            case BeamVerdict():
                events = self._verified(frame, now_ms)
            case Closed():
                pass
            case Failure():
                raise error_from_status(frame.status, frame.message, retry_after_ms=frame.retry_after_ms)
            case _:
                raise ProtocolViolation(f"frame: {type(frame).__name__} on a stream of beams; use another cloud")
        self.cloud.on_frame(idle=isinstance(frame, BeamVerdict) or not self._beams.waits)
        self._patience.note(progress=isinstance(frame, BeamVerdict), tokens_left=self._beams.progress.layers_left)
        return events

    def _verified(self, verdict: BeamVerdict, now_ms: float) -> list[Event]:
        progress, counts = self._beams.progress, self._counts
        texts, numbering = progress.texts, self._beams.sent
        gain = self._beams.receive(verdict)
        assert numbering is not None, "a verdict without a question is refused"
        self._output.origins(numbering, texts, verdict)
        counts.cloud_compute_us += verdict.compute_us
        counts.cloud_queue_us += verdict.queue_us
        cloud_ms = (verdict.compute_us + verdict.queue_us) / 1e3
        self._learn(verdict, gain, numbering, len(texts), cloud_ms, now_ms)
        if self._stops:
            self._beams.stop(self._output.stopped(), self._output.copies)
        if counts.first_shown_ms is None:
            counts.first_shown_ms = now_ms
        committed = self._output.commit()
        if committed and counts.first_final_ms is None:
            counts.first_final_ms = now_ms
        self._origins += [event.origin for event in committed]
        return [self._output.beams(), *committed]

    def _learn(
        self, verdict: BeamVerdict, gain: Gain, numbering: Numbering, running: int, cloud_ms: float, now_ms: float
    ) -> None:
        """Learn the costs and the fate of the drafts from a verdict on a forest that continued `running` texts."""
        estimates, planner = self._estimates, self._planner
        if self._sent_ms is not None:
            estimates.travelled(now_ms - self._sent_ms - cloud_ms)
        since_ms = self._sent_ms if self._stops else self._layer_ms
        if self._layer_ms is not None and not numbering.depth:
            estimates.streamed(now_ms - self._layer_ms, cloud_ms)
        if cloud_ms:
            estimates.read(len(numbering.nodes), cloud_ms)
        if numbering.depth:
            layers = numbering.slots[1:]
            planner.judged(gain, layers, accepted=verdict.accepted, tested=verdict.tested, running=running)
        else:
            planner.drawn_alone(cloud_ms if since_ms is None else now_ms - since_ms, running)
        self._sent_ms = None
        self._layer_ms = now_ms if self._beams.waits else None

    async def _recover(self, error: ChaperoneError) -> None:
        """Open another stream that goes on with the beams; raise the error if none may help."""
        lost = loss_of(error, outgrown=self._outgrown, reopened=self.cloud.reopened)
        pause_ms = self.cloud.pause_ms(lost)
        if pause_ms is None:
            raise self.cloud.outcome(lost)
        self._prefilled, self._sent_ms, self._layer_ms, self._counts.opened_ms = False, None, None, None
        await self.cloud.reopen(replace(self.opening, beams=self._beams.restart()), after_ms=pause_ms)

    @property
    def _outgrown(self) -> bool:
        """True if the forest in flight is larger than the cloud's limit, which a reconnection may have lowered."""
        texts = len(self._beams.progress.texts) + self._texts
        return self._beams.waits and self._shape.depth > 0 and texts > self._limits.texts

    def _finished(self) -> Finished:
        best = self._beams.progress.hypotheses.best[0]
        rest = self._text.flush()
        stopped = self._text.stopped or best.finish_reason == FinishReason.STOP
        self._finish_reason = FinishReason.STOP if stopped else FinishReason.LENGTH
        return Finished(self._finish_reason, self._stats(), rest)

    def _stats(self) -> GenerationStats:
        counts, now_ms = self._counts, self._now_ms
        total_ms, cloud_ms = now_ms - counts.started_ms, counts.cloud_compute_us / 1e3
        up, down = self.cloud.bytes_up, self.cloud.bytes_down

        def written(*origins: Origin) -> int:
            return sum(origin in origins for origin in self._origins)

        def since_start(moment_ms: float | None) -> float | None:
            return None if moment_ms is None else moment_ms - counts.started_ms

        of_cloud = sum(origin.of_cloud for origin in self._origins)
        return GenerationStats(
            prompt_tokens=self._prompt_length,
            completion_tokens=len(self._origins),
            finish_reason=self._finish_reason,
            ttft_ms=since_start(counts.first_shown_ms),
            ttft_committed_ms=since_start(counts.first_final_ms),
            cloud_cached_tokens=counts.cached_tokens or 0,
            prefill_ms=counts.prefill_us / 1e3,
            total_ms=total_ms,
            round_trips=counts.round_trips,
            verified_tokens=written(Origin.VERIFIED),
            overridden_tokens=written(Origin.OVERRIDE),
            caught=written(Origin.OVERRIDE),
            bonus_tokens=written(Origin.BONUS),
            takeover_tokens=written(Origin.TAKEOVER),
            cloud_share=of_cloud / len(self._origins) if self._origins else 0.0,
            promises_hold=promises_hold(
                self._mode,
                unverified=False,
                earlier=self._settings.committed_promises_hold,
                resumed=bool(self._committed),
            ),
            reconnects=counts.reconnects,
            bytes_up=up,
            bytes_down=down,
            edge_compute_ms=counts.edge_compute_ms,
            cloud_compute_ms=cloud_ms,
            cloud_queue_ms=counts.cloud_queue_us / 1e3,
            energy_j=EnergyModel().joules(
                device_ms=counts.edge_compute_ms, cloud_ms=cloud_ms, radio_ms=total_ms, bytes_up=up, bytes_down=down
            ),
            generation_id=self._generation_id,
            seed=self.opening.sampling.seed,
            model_digest=self.opening.model_digest,
        )

    @property
    def _now_ms(self) -> float:
        return self._clock.now() * 1e3
