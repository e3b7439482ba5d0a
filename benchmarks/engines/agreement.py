"""Changes by a data type: greedy choices and log-likelihoods along texts that `cloud` wrote."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kit.statistics import rounded
from benchmarks.quality.task_suites import tasks_of
from chaperone_common.errors import ConfigError
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.model.ports import ForwardRequest
from cloud_supervisor.model.torch_model import TorchModel
from edge_client.text import ChatTemplate, Tokenizer

SPAN = 32  # tokens of a forward; their logits need 20 MB


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt, and an answer that the large model wrote."""

    kind: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """An engine's greedy choice at each token of an answer, and the log-probability of that token in nats."""

    choices: NDArray[np.int64]
    log_likelihood: NDArray[np.float64]


def texts_of(
    answers: Path, suite: str, count: int, tokens: int, tokenizer: Tokenizer, template: ChatTemplate
) -> list[Text]:
    """Return the first `count` answers of `cloud` to a suite's tasks, `tokens` long; raises ConfigError without any."""
    try:
        with gzip.open(answers, "rt", encoding="utf-8") as lines:
            rows = [row for row in map(json.loads, lines) if row["strategy"] == "cloud"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{answers}: no answers of `python -m benchmarks quality` ({error})") from None
    messages = {task.id: task.message for task in tasks_of(suite)}
    found = []
    for row in rows[:count]:
        prompt = tokenizer.encode(template.render([{"role": "user", "content": messages[row["id"]]}]))
        found.append(Text(suite, tuple(prompt), tuple(row["token_ids"][:tokens])))
    if not found:
        raise ConfigError(f"{answers}: no answers of `cloud`")
    return found


def read(model: TorchModel, text: Text) -> Reading:
    """Let a model read an answer, and measure each of its tokens."""
    cache, sampling = model.kv_pool.new_cache(), SamplingParams()
    whole = (*text.prompt, *text.answer[:-1])
    first = len(text.prompt) - 1  # the prompt's last token chooses the answer's first
    model.scores(ForwardRequest(cache, TokenTree(whole[:first]), 0, sampling))
    choices: list[int] = []
    log_likelihood: list[float] = []
    for start in range(first, len(whole), SPAN):
        tree = TokenTree(whole[start : start + SPAN], (), start)
        rows = model.scores(ForwardRequest(cache, tree, len(tree.token_ids), sampling)).astype(np.float64)
        wanted = text.answer[start - first : start - first + len(rows)]
        choices += rows.argmax(axis=1).tolist()
        most = rows.max(axis=1)
        totals = most + np.log(np.exp(rows - most[:, None]).sum(axis=1))
        log_likelihood += (rows[np.arange(len(rows)), list(wanted)] - totals).tolist()
    return Reading(np.array(choices), np.array(log_likelihood))


def compared(texts: Sequence[Text], reference: Sequence[Reading], other: Sequence[Reading]) -> dict[str, Any]:
    """Return, by kind of text, how an engine differs from the reference."""
    found: dict[str, Any] = {}
    for kind in dict.fromkeys(text.kind for text in texts):
        pairs = [(old, new) for text, old, new in zip(texts, reference, other, strict=True) if text.kind == kind]
        equal = np.concatenate([old.choices == new.choices for old, new in pairs])
        lost = np.concatenate([old.log_likelihood - new.log_likelihood for old, new in pairs])
        found[kind] = {
            "texts": len(pairs),
            "tokens": len(equal),
            "agreement": rounded(float(equal.mean()), 4),
            "lost_nats_per_100_tokens": rounded(100 * float(lost.mean())),
        }
    return found
