"""The share of the large model's tokens that the small one would have written, on sample prompts."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from cloud_supervisor.export.conversion import LoadedModel, message_ids

# Some of each kind of text that people ask for. Agreement is highest on code.
SAMPLE_PROMPTS = (
    "Write a Python function that returns the n-th Fibonacci number.",
    "Explain in three sentences why the sky is blue.",
    "A train leaves at 9:40 and arrives at 13:05. How long does it take? Show the steps.",
    "Write a short e-mail that moves a meeting from Monday to Wednesday.",
    "List five facts about volcanoes.",
    "Write a SQL query that counts the orders of each customer in 2024.",
)


def count_agreeing(
    edge: LoadedModel,
    cloud: LoadedModel,
    vocabulary_size: int,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    seconds: float,
) -> tuple[int, int]:
    """Return how many tokens of the large model's greedy texts the small one would have written, and all tokens.

    No further prompt is begun after `seconds`. At least one is answered.
    """
    agreed = tokens = 0
    ends_s = time.monotonic() + seconds
    for prompt in prompts:
        text, prompt_tokens = _written(cloud, vocabulary_size, prompt, max_new_tokens)
        with torch.inference_mode():
            logits = edge.model(text.unsqueeze(0), use_cache=False).logits[0, prompt_tokens - 1 : -1, :vocabulary_size]
        written = text[prompt_tokens:]
        agreed += int((logits.argmax(dim=-1) == written).sum())
        tokens += len(written)
        if time.monotonic() > ends_s:
            break
    return agreed, tokens


def _written(cloud: LoadedModel, vocabulary_size: int, prompt: str, max_new_tokens: int) -> tuple[torch.Tensor, int]:
    """Return the prompt's ids with the large model's greedy text, and the length of the prompt."""
    padding = [*range(vocabulary_size, cloud.model.get_output_embeddings().weight.shape[0])]  # ids that are no tokens
    ids = torch.tensor([message_ids(cloud.tokenizer, prompt)])
    with torch.inference_mode():
        output = cloud.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            temperature=None,
            top_p=None,
            top_k=None,
            suppress_tokens=padding or None,
            pad_token_id=cloud.eos_token_ids[0] if cloud.eos_token_ids else 0,
        )
    return output[0], ids.shape[1]
