"""Stop strings: each text ends at the token that completes one, drafted or not, and no text comes twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from chaperone_common.beams.frames import BeamSettings
from chaperone_common.beams.hypotheses import Hypothesis
from tests.unit.beams.models import EOS, VOCABULARY, large
from tests.unit.beams.pair import Pair

Text = tuple[int, ...]
TOKENS = 8
SPELLED = ("a", "x", "y", ".", ".!", "xy", "b", "")  # of each token
STOPS = (".", "xy")


def spelled(text: Text) -> str:
    return "".join(SPELLED[token] for token in text)


def read(text: Text) -> str:
    """Return a text up to its first stop string."""
    found = spelled(text)
    return found[: min((found.index(stop) for stop in STOPS if stop in found), default=len(found))]


class Reader:
    def stops(self, text: Text) -> bool:
        return any(stop in spelled(text) for stop in STOPS)

    def copies(self, finished: Sequence[Hypothesis]) -> list[int]:
        texts = [read(found.token_ids) for found in finished]
        return [rank for rank, text in enumerate(texts) if text in texts[:rank]]


def searched_alone(prompt: Text, settings: BeamSettings) -> list[Text]:
    """Return the best texts of beam search as in Hugging Face's, with all continuations of each layer at hand.

    Of finished texts that read alike one is kept.
    """
    width, running, finished = settings.num_beams, dict[Text, float]({(): 0.0}), dict[Text, float]()
    for length in range(1, TOKENS + 1):
        reached: dict[Text, float] = {
            (*text, token): logprob + float(np.log(large((*prompt, *text))[token]))
            for text, logprob in running.items()
            for token in range(VOCABULARY)
        }
        ranked = sorted(reached, key=lambda text: -reached[text])
        ended = [text for text in ranked if text[-1] == EOS or Reader().stops(text)]
        finished |= {
            text: reached[text] / length**settings.length_penalty
            for text in ranked[:width]
            if text in ended or length == TOKENS
        }
        by_text = {read(text): text for text in sorted(finished, key=lambda text: finished[text])}
        best = sorted(by_text.values(), key=lambda text: -finished[text])[:width]
        finished = {text: finished[text] for text in best}
        kept = [text for text in ranked[: 2 * width] if text not in ended]
        running = {text: reached[text] for text in kept[:width]}
        if not running:
            break
        likeliest = max(running.values()) / length**settings.length_penalty
        if len(best) == width and (settings.early_stopping or likeliest <= finished[best[-1]]):
            break
    return best


@pytest.mark.parametrize("num_beams", [1, 2, 4])
@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_search_with_stop_strings_is_that_of_the_large_model_alone(
    num_beams: int, early_stopping: bool, length_penalty: float
) -> None:
    settings = BeamSettings(num_beams, length_penalty=length_penalty, early_stopping=early_stopping, stops=True)
    for number in range(24):
        prompt = (1, number)
        expected = searched_alone(prompt, settings)
        for width, depth in ((1, 0), (2, 1), (6, 4)):
            pair = Pair(settings, temperature=0.0, tokens=TOKENS, prompt=prompt, reader=Reader())
            pair.run(width, depth)
            assert [found.token_ids for found in pair.device.progress.hypotheses.best] == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("one_cache", [False, True])
def test_each_text_ends_at_its_stop_string_with_its_own_score(temperature: float, one_cache: bool) -> None:
    settings = BeamSettings(3, one_cache=one_cache, stops=True)
    stopped = 0
    for number in range(40):
        prompt = (1, number)
        pair = Pair(settings, temperature=temperature, tokens=TOKENS, seed=number, prompt=prompt, reader=Reader())
        pair.run(width=5, depth=3)
        best = pair.device.progress.hypotheses.best
        assert 1 <= len(best) <= 3
        assert len({read(found.token_ids) for found in best}) == len(best)
        for found in best:
            text = found.token_ids
            assert not Reader().stops(text[:-1])
            law = [large((*prompt, *text[:end]))[text[end]] for end in range(len(text))]
            assert found.logprob == pytest.approx(float(np.log(law).sum()), rel=1e-5)
            stopped += Reader().stops(text)
    assert stopped
