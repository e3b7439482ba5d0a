"""The large model's answers, read by a small model: the tokens that it would have written itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from benchmarks.conditioning.texts import WAYS, Answered
from chaperone_common.conditioning import Encoding
from chaperone_common.sampling import choose, softmax
from chaperone_common.types import SamplingParams
from edge_client.model.onnx_model import OnnxModel


def agreement(model: OnnxModel, text: Answered, encoding: Encoding | None) -> NDArray[np.bool_]:
    """Return, for each token of the answer, whether the small model would have chosen it after the text before it.

    It chooses as a device does: the likeliest token, or by coupled choice with the noise of the answer's seed.
    """
    return asyncio.run(_read(model, text, encoding))


async def _read(model: OnnxModel, text: Answered, encoding: Encoding | None) -> NDArray[np.bool_]:
    sampling = SamplingParams(temperature=WAYS[text.way], seed=text.seed)
    fed: Sequence[int] = (*text.prompt, *text.answer[:-1])
    agreed = []
    with closing(model.new_sequence()) as sequence:
        if model.graph.encoding_width:
            sequence.condition(encoding)
        async for step in sequence.read(fed):
            if step.position < len(text.prompt):
                continue
            choice = choose(softmax(step.logits, sampling.temperature), sampling, step.position)
            agreed.append(choice.token_id == text.answer[step.position - len(text.prompt)])
    return np.array(agreed, np.bool_)
