"""A generation with beams: Forests in, BeamVerdicts out.

Each running text has a cache of its own, under the session's key and a number, its *lane*. Texts that begin alike share
their slots, so that a lane holds only what differs. A lane whose text has died goes on with another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Hashable, Sequence
from contextlib import aclosing

from chaperone_common.beams.cloud import CloudBeams, Round, TextScores
from chaperone_common.beams.frames import BeamSettings, BeamVerdict, ForestFrame
from chaperone_common.errors import InvalidRequest, ProtocolViolation
from chaperone_common.frames import Capabilities, ClientFrame, Close, Closed, Draft, Open, ServerFrame
from chaperone_common.session import CloudSession
from chaperone_common.token_tree import common_prefix
from cloud_supervisor.conversations.exchange import Exchange
from cloud_supervisor.model.ports import ForwardResult, Urgency
from cloud_supervisor.observation import Answered


def check_beams(opening: Open, capabilities: Capabilities) -> None:
    """Raise InvalidRequest for an Open whose beams this cloud does not serve."""
    beams = opening.beams
    if beams is None:
        return
    if beams.num_beams > capabilities.max_beams:
        raise InvalidRequest(
            f"beams.num_beams: {beams.num_beams}, and this cloud serves up to {capabilities.max_beams} "
            "(limits.max_beams); ask for fewer, or for one text"
        )
    if opening.committed_token_ids or opening.encoding is not None or opening.top_logprobs is not None:
        raise InvalidRequest(
            "beams: they go neither with committed_token_ids, nor with an encoding, nor with top_logprobs; leave these "
            "out, and resume from beams.running"
        )


def beams_of(opening: Open, settings: BeamSettings, session: CloudSession) -> CloudBeams:
    """Return the cloud's end of the beams of an Open, as long as the text of its session may be."""
    return CloudBeams(
        settings,
        opening.sampling,
        opening.prompt_token_ids,
        session.limit - session.prompt_length,
        opening.eos_token_ids,
        session.vocabulary_size,
    )


class BeamConversation:
    """The loop of one stream that writes several texts at once."""

    def __init__(self, exchange: Exchange, beams: CloudBeams) -> None:
        self._exchange = exchange
        self._beams = beams
        self._prompt = exchange.opening.prompt_token_ids
        self._lanes: dict[int, tuple[int, ...]] = {0: self._prompt}  # the text that each has read last
        self._answered = False

    async def frames(self, context_tokens: int) -> AsyncGenerator[ServerFrame, None]:
        """Answer the device's frames, up to Closed. Raises what ends the stream."""
        exchange, beams = self._exchange, self._beams
        try:
            async with aclosing(exchange.begin(self._prompt, context_tokens)) as begun:
                async for beginning in begun:
                    yield beginning
            alone = 0  # layers that the cloud may still draw by itself
            while True:
                arrived_at = exchange.clock.now()
                if alone and exchange.stream.inbox.empty and not beams.progress.done:
                    asked = beams.alone()
                    alone -= 1
                else:
                    arrived, arrived_at = await exchange.next()
                    frame = _of_beams(arrived)
                    if isinstance(frame, Close):
                        yield Closed()
                        return
                    asked = beams.receive(frame)
                    alone = 0 if frame.forest.depth else frame.layers - 1
                yield await self._verdict(asked, arrived_at)
        finally:
            for lane in self._lanes:
                if lane:
                    exchange.queue.free(self._key(lane))

    async def _verdict(self, asked: Round, arrived_at: float) -> BeamVerdict:
        """Ask for the scores of a round, and verify it."""
        exchange, position = self._exchange, len(self._prompt) + self._beams.progress.length
        nodes = sum(len(text.scoring.nodes) for text in asked.texts)
        if nodes > exchange.limits.max_span_tokens:
            raise InvalidRequest(
                f"forest: {nodes} texts to read, at most {exchange.limits.max_span_tokens} are allowed; draft fewer "
                "layers, or narrower ones"
            )
        admission, tenant = exchange.admission, exchange.key.tenant
        admission.check_work(tenant)
        admission.charge(tenant, nodes)
        results = await self._scores(asked, arrived_at)
        scores = [result.scores for result in results if result.scores is not None]
        queue_us = max(result.queue_us for result in results)
        compute_us = max(result.compute_us for result in results)
        verdict = self._beams.answer(asked, scores, queue_us, compute_us)
        exchange.progress()
        admission.grow(exchange.key, len(self._prompt) + sum(map(len, self._beams.progress.texts)))
        self._note(verdict, position, arrived_at)
        return verdict

    async def _scores(self, asked: Round, arrived_at: float) -> list[ForwardResult]:
        """Read all texts of a round, in one forward if the queue allows; the order is that of the texts."""
        exchange = self._exchange
        deadline_ms = exchange.time_left_ms(asked.frame.deadline_ms, arrived_at)

        def read(lane: int, text: TextScores) -> asyncio.Task[ForwardResult]:
            self._lanes[lane] = text.tree.token_ids
            return group.create_task(
                exchange.queue.forward(
                    self._key(lane),
                    text.tree,
                    1,
                    exchange.opening.sampling,
                    deadline_ms=deadline_ms,
                    tenant=exchange.key.tenant,
                    urgency=Urgency.VERIFY if asked.frame.forest.depth else Urgency.WRITE,
                    scoring=text.scoring,
                )
            )

        lanes = lanes_of(self._lanes, [text.tree.token_ids for text in asked.texts])
        try:
            async with asyncio.TaskGroup() as group:
                reading = [read(lane, text) for lane, text in zip(lanes, asked.texts, strict=True)]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in reading]

    def _key(self, lane: int) -> Hashable:
        return (self._exchange.key, lane) if lane else self._exchange.key

    def _note(self, verdict: BeamVerdict, position: int, arrived_at: float) -> None:
        exchange = self._exchange
        now = exchange.clock.now()
        exchange.observer.notice(
            Answered(
                stream=exchange.stream.number,
                tenant=exchange.key.tenant,
                start=position,
                verified=verdict.tested,
                accepted=verdict.accepted,
                own=sum(step.token_id is not None for step in (*verdict.running, *verdict.finished)),
                takeover=0,
                audited=0,
                deviations=0,
                queue_s=verdict.queue_us / 1e6,
                compute_s=verdict.compute_us / 1e6,
                duration_s=now - arrived_at,
                first=not self._answered,
                since_open_s=now - exchange.stream.began_at,
            )
        )
        self._answered = True


def lanes_of(held: dict[int, tuple[int, ...]], texts: Sequence[tuple[int, ...]]) -> list[int]:
    """Return a lane for each text: the free one that shares most with it, in the order of the texts."""
    free = {lane: held.get(lane, ()) for lane in range(max(len(texts), len(held)))}
    found = []
    for text in texts:
        lane = max(free, key=lambda lane: (common_prefix(free[lane], text), -lane))
        del free[lane]
        found.append(lane)
    return found


def _of_beams(frame: ClientFrame) -> ForestFrame | Close:
    """Return a frame that continues beams, or ends them; raises ProtocolViolation for others."""
    if isinstance(frame, Open):
        raise ProtocolViolation("frame: a second Open in one stream")
    if isinstance(frame, Draft):
        raise ProtocolViolation("draft: the Open asked for beams; send Forests")
    return frame
