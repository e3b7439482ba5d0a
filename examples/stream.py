"""Show provisional tokens while they are drafted: `python examples/stream.py [CONFIG]`, with a cloud running.

Provisional text is shown after the final text, in brackets. The cloud confirms it or takes it back.
"""

import asyncio
import sys

from edge_client import (
    Audited,
    Beams,
    CloudShareReached,
    Committed,
    Drafted,
    EdgeClient,
    Failed,
    Finished,
    Planned,
    Retracted,
    Unverified,
)


async def main(config: str) -> None:
    final = ""
    drafted: dict[int, str] = {}  # text of each provisional token, by position
    async with EdgeClient.from_config(config) as client:
        async for event in client.stream("Write a haiku about latency.", mode="exact", max_new_tokens=64):
            match event:
                case Drafted():
                    drafted[event.position] = event.text
                case Retracted():
                    drafted = {position: text for position, text in drafted.items() if position < event.position}
                case Committed():
                    drafted.pop(event.position, None)
                    final += event.text
                case Finished():
                    waited, hidden = event.stats.round_trips, event.stats.hidden_round_trips
                    print(f"{final}{event.text}\n{waited} round trips that the device waited for, {hidden} hidden")
                    return
                case Failed():
                    raise event.error  # client.stream(event.error.partial) resumes the text
                case Audited() | Unverified() | CloudShareReached() | Beams() | Planned():
                    pass  # only in `gated`, with `num_beams`, or with `explain=True`
            print(f"{final[-40:]}[{''.join(drafted.values())}]".replace("\n", " "), flush=True)


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "edge.yaml"))
