"""Write several texts at the same time on one client: `python examples/batch.py [CONFIG]`, with a cloud running.

`chaperone generate --prompts IN.jsonl --out OUT.jsonl` does the same for files, and resumes after an interruption.
"""

import asyncio
import sys

from edge_client import ChaperoneError, EdgeClient

QUESTIONS = ("What is a token?", "What is a round trip?", "What is a prefix cache?")


async def main(config: str) -> None:
    async with EdgeClient.from_config(config) as client:
        answers = await asyncio.gather(
            *(client.generate(question, mode="gated", max_new_tokens=48) for question in QUESTIONS),
            return_exceptions=True,
        )
    for question, answer in zip(QUESTIONS, answers, strict=True):
        match answer:
            case ChaperoneError():
                print(f"{question}\n  failed: {answer}")
            case BaseException():
                raise answer
            case _:
                print(f"{question}\n  {answer.text!r} (the gate asked about {answer.stats.fired} tokens)")


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "edge.yaml"))
