"""Texts of a fake pair of models, and the text that the large one writes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.sampling import choose, softmax
from chaperone_common.session import Committed, Finished
from chaperone_common.types import Mode, SamplingParams
from edge_client import EdgeClient
from edge_client.events import Event
from edge_client.generation import GenerationRequest
from edge_client.model.drafter import ChoosingDrafter
from edge_client.ports import Drafter, DraftModel
from tests.support.fakes.draft import FakeDraft
from tests.support.fakes.target import FakeTarget
from tests.support.processes.clients import ending_of

WORDS = ("the", "list", "of", "a", "number", "is", "for", "each", "line", "in", "this", "file", "and", "more")
_DISTURBANCE = 0.2  # at which three of four draft tokens stand
_STEP_S = 0.003  # of the small model; without it, most drafts would be wasted while an answer is on its way


@dataclass(frozen=True, slots=True)
class Text:
    """A text to write."""

    number: int
    prompt: str
    mode: Mode
    temperature: float
    seed: int
    max_new_tokens: int


def some_texts(count: int, modes: Sequence[Mode], *, seed: int, least: int, most: int) -> list[Text]:
    """Return texts of `least` to `most` tokens, in all combinations of mode and temperature."""
    random = Random(seed)
    return [
        Text(
            number=number,
            prompt=" ".join(random.choices(WORDS, k=random.randint(1, 12))),
            mode=modes[number % len(modes)],
            temperature=(0.0, 0.8)[number // len(modes) % 2],
            seed=random.getrandbits(64),
            max_new_tokens=random.randint(least, most),
        )
        for number in range(count)
    ]


def fake_drafter(pair: Path) -> Callable[[DraftModel, SamplingParams], Drafter]:
    """Return what makes drafters for `EdgeClient`: their model is a disturbed twin of `fake_target`."""
    manifest = load_manifest(pair / "cloud", role="cloud")
    twin = FakeTarget(manifest.vocabulary_size, manifest.context_tokens, disturbance=_DISTURBANCE)
    return lambda model, sampling: ChoosingDrafter(FakeDraft(twin, step_s=_STEP_S, branches=model.branches), sampling)


def request_for(client: EdgeClient, text: Text) -> GenerationRequest:
    return client.request(
        text.prompt,
        mode=text.mode,
        temperature=text.temperature,
        seed=text.seed,
        max_new_tokens=text.max_new_tokens,
    )


def written_alone(target: FakeTarget, request: GenerationRequest, eos_token_ids: Sequence[int]) -> list[int]:
    """Return the text that the large model writes without a device, a server or a cache."""
    sampling, written = request.params.sampling, [*request.prompt.token_ids]
    for _ in range(request.params.max_new_tokens):
        soft = softmax(target.logits(written), sampling.temperature)
        written.append(choose(soft, sampling, len(written)).token_id)
        if written[-1] in eos_token_ids:
            break
    return written[len(request.prompt.token_ids) :]


def check_text(events: Sequence[Event], expected: Sequence[int]) -> Finished:
    """Check that a text finished once, with the expected tokens, all of them verified; return its end."""
    ending = ending_of(events)
    assert isinstance(ending, Finished), ending
    assert [event.token_id for event in events if isinstance(event, Committed)] == [*expected]
    assert ending.stats.unverified_tokens == 0
    assert ending.stats.promises_hold
    return ending
