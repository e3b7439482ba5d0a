"""Stage 1: the text that is learned from, and training that goes on after an interruption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adaptive.corpus import END, Document, tokens_of, train_tokenizer, windows
from adaptive.duo import DuoConfig, DuoTransformer, Effort
from adaptive.pretraining import Schedule, loss_of, pretrain
from chaperone_common.errors import ConfigError

CONFIG = DuoConfig(vocabulary=32, layers=2, width=32, heads=2, kv_heads=1, big=64, context=16)
BIG = (Effort.BIG, Effort.BIG)


def texts() -> np.ndarray:
    """Return texts in which a token follows from the one before."""
    first = np.random.default_rng(1).integers(32, size=64)
    return (first[:, None] + 5 * np.arange(12)) % 32


def test_training_lowers_the_loss_of_each_route(tmp_path: Path) -> None:
    duo = DuoTransformer(CONFIG, seed=1)
    before = {effort: loss_of(duo, texts(), (effort, effort)) for effort in Effort}
    schedule = Schedule(steps=60, texts=16, learning_rate=1e-2, keep_every=30)
    assert pretrain(duo, texts(), schedule, tmp_path / "c", say=lambda line: None)
    for effort in Effort:
        assert loss_of(duo, texts(), (effort, effort)) < before[effort] - 0.5


def test_an_interrupted_training_takes_the_same_steps(tmp_path: Path) -> None:
    schedule = Schedule(steps=12, texts=8, keep_every=5)
    whole = DuoTransformer(CONFIG, seed=1)
    assert pretrain(whole, texts(), schedule, tmp_path / "whole", say=lambda line: None)
    said: list[str] = []
    interrupted = DuoTransformer(CONFIG, seed=1)
    assert not pretrain(interrupted, texts(), schedule, tmp_path / "c", max_seconds=-1.0, say=said.append)
    assert said == ["step 0 of 12; the same command goes on"]
    seconds, over = 0.0, False
    while not over:
        interrupted = DuoTransformer(CONFIG, seed=9)
        seconds += 0.02
        over = pretrain(interrupted, texts(), schedule, tmp_path / "c", max_seconds=seconds, say=said.append)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(interrupted.state_dict()[name], value)


def test_a_checkpoint_that_is_cut_or_of_another_run_is_refused(tmp_path: Path) -> None:
    schedule, file = Schedule(steps=2, texts=4), tmp_path / "c"
    pretrain(DuoTransformer(CONFIG), texts(), schedule, file, run="one", say=lambda line: None)
    with pytest.raises(ConfigError, match="it belongs to a training with other texts or settings"):
        pretrain(DuoTransformer(CONFIG), texts(), schedule, file, run="two", say=lambda line: None)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="it is no whole checkpoint"):
        pretrain(DuoTransformer(CONFIG), texts(), schedule, file, run="one", say=lambda line: None)


def test_files_become_tokens_in_an_order_of_their_own() -> None:
    found = [Document(f"package/{number}.py", f"value = {number}\n" * 9) for number in range(200)]
    tokenizer = train_tokenizer((document.text for document in found), 300)
    end = tokenizer.token_to_id(END)
    learned, held_out = tokens_of(iter(found), tokenizer, 10**6)
    assert (learned == end).sum() + (held_out == end).sum() == 200
    assert (held_out == end).sum() == sum(document.held_out for document in found) > 0
    fewer, _ = tokens_of(iter(found), tokenizer, len(learned) // 2)
    assert np.array_equal(fewer, learned[: len(fewer)])
    assert tokenizer.decode(learned[:40].tolist()).startswith("value = ")
    assert windows(learned, 16).shape == (len(learned) // 16, 16)
