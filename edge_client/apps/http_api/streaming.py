"""From the events of generations to server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from chaperone_common.errors import ChaperoneError
from chaperone_common.logprobs import TokenLogprobs
from chaperone_common.session import Committed, Failed, Finished, Unverified
from chaperone_common.stats import GenerationStats
from chaperone_common.types import FinishReason
from edge_client.apps.http_api.errors import api_error
from edge_client.apps.http_api.logprobs import Offsets, shown
from edge_client.apps.http_api.replies import Answer, Reply, server_sent
from edge_client.events import Beams, BeamText, Event

Write = Callable[[int], AsyncGenerator[Event, None]]  # the events of one choice, by its number


async def streamed(
    reply: Reply, choices: int, write: Write, *, usage: bool, logprobs: bool = False
) -> AsyncGenerator[str, None]:
    """Yield the server-sent events of an answer, choice after choice.

    Provisional text is not sent. Raises the error of a first choice that fails before its first token; any later error
    is the last event.
    """
    stats: list[GenerationStats] = []
    begun = False
    try:
        for index in range(choices):
            async with aclosing(_choice(reply, index, write(index), stats, logprobs)) as sent:
                async for event in sent:
                    begun = True
                    yield event
    except ChaperoneError as error:
        if not begun:
            raise
        yield server_sent(api_error(error, reply.prompt).body)
        return
    if usage:
        yield reply.usage(stats)
    yield server_sent("[DONE]")


async def _choice(
    reply: Reply, index: int, events: AsyncGenerator[Event, None], stats: list[GenerationStats], logprobs: bool
) -> AsyncGenerator[str, None]:
    """Yield the server-sent events of one choice, and add its statistics; raises the error of a Failed event."""
    unverified: ChaperoneError | None = None
    begun = False
    waiting: list[TokenLogprobs] | None = [] if logprobs else None  # of tokens that have not completed any text yet
    offsets = Offsets()
    async with aclosing(events) as received:
        async for event in received:
            if isinstance(event, Committed | Finished) and not begun:
                begun = True
                yield reply.begins(index)
            if isinstance(event, Committed) and waiting is not None:
                waiting += shown([event.logprobs])
            match event:
                case Committed(text=text) if text:
                    yield reply.token(index, event, waiting, offsets)
                    waiting = [] if waiting is not None else None
                case Unverified(error=error):
                    unverified = error
                case Finished():
                    stats.append(event.stats)
                    for ending in reply.ends(index, event, unverified, waiting, offsets):
                        yield ending
                case Failed(error=error):
                    raise error
                case _:
                    pass


async def best(events: AsyncGenerator[Event, None], count: int) -> list[Answer]:
    """Return the best texts of a search after its last event; raises the error of a Failed event.

    The statistics are of the whole search, except for the tokens and the end of each text.
    """
    finished: tuple[BeamText, ...] = ()
    async with aclosing(events) as received:
        async for event in received:
            match event:
                case Beams():
                    finished = event.finished
                case Failed():
                    raise event.error
                case Finished(stats=stats):
                    return [_answer(text, stats) for text in finished[:count]]
                case _:
                    pass
    raise RuntimeError("the generation has not ended")


def _answer(text: BeamText, stats: GenerationStats) -> Answer:
    reason = text.finish_reason or FinishReason.LENGTH
    stats = replace(stats, completion_tokens=len(text.token_ids), finish_reason=reason)
    return Answer(text.text, tuple(map(str, text.origins)), reason, stats)


async def collected(events: AsyncGenerator[Event, None], *, logprobs: bool = False) -> Answer:
    """Return a text after its last event; raises the error of a Failed event."""
    text, origins, unverified = "", list[str](), None
    found: list[TokenLogprobs | None] = []
    async with aclosing(events) as received:
        async for event in received:
            match event:
                case Committed():
                    text += event.text
                    origins.append(str(event.origin))
                    found.append(event.logprobs)
                case Unverified():
                    unverified = event.error
                case Failed():
                    raise event.error
                case Finished():
                    reported = tuple(shown(found)) if logprobs else None
                    text += event.text
                    return Answer(text, tuple(origins), event.finish_reason, event.stats, unverified, reported)
                case _:
                    pass
    raise RuntimeError("the generation has not ended")
