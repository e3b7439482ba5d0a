"""Explored texts as one client of `exact` writes them, with a memory of corrections and without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.quality.exploration.text_tree import ROOT, TextTree
from chaperone_common.errors import ConfigError
from chaperone_common.types import Proposal
from edge_client.model.corrections import CorrectionMemory


@dataclass(frozen=True, slots=True)
class CloudText:
    """The cloud's text after a prompt, and the device's own proposal for each of its tokens."""

    prompt: tuple[int, ...]
    tokens: tuple[tuple[Proposal, int], ...]

    @classmethod
    def of(cls, tree: TextTree, max_new_tokens: int) -> CloudText:
        """Follow the cloud's choices to the end; raise ConfigError if the device proposed nothing along them."""
        tokens = tuple(_followed(tree, max_new_tokens))
        if not tokens:
            raise ConfigError(
                f"explored: the device was not asked along the cloud's text of {tree.id}; run "
                "`python -m benchmarks quality` with --strategies cloud --read-along first"
            )
        return cls(tree.prompt, tokens)


def _followed(tree: TextTree, max_new_tokens: int) -> Iterator[tuple[Proposal, int]]:
    node = ROOT
    for _ in range(max_new_tokens):
        if node not in tree.choices or node not in tree.proposals:  # after end-of-text
            return
        chosen = tree.choices[node]
        yield tree.proposals[node], chosen
        node = tree.child(node, chosen)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Counts of one text, or of several together."""

    tokens: int = 0
    overrides: int = 0  # of the small model's own choices
    remembered: int = 0  # proposals of the memory in place of the small model's choice
    saved: int = 0  # overrides that the memory foresaw
    spoiled: int = 0  # choices of the small model that would have stood, and that the memory replaced

    @property
    def overrides_with_memory(self) -> int:
        return self.overrides - self.saved + self.spoiled

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(
            self.tokens + other.tokens,
            self.overrides + other.overrides,
            self.remembered + other.remembered,
            self.saved + other.saved,
            self.spoiled + other.spoiled,
        )


def written(text: CloudText, memory: CorrectionMemory) -> Outcome:
    """Write a text, and teach the memory by each of its tokens.

    In a real generation tokens are confirmed a span later. An override comes before anything is drafted after it, as
    here.
    """
    so_far = [*text.prompt]
    outcome = Outcome()
    for own, chosen in text.tokens:
        proposal = memory.adapted(so_far, own)
        outcome += _judged(own, proposal, chosen)
        memory.judged(so_far, len(so_far), proposal, chosen)
        so_far.append(chosen)
    return outcome


def _judged(own: Proposal, proposal: Proposal, chosen: int) -> Outcome:
    stood, replaced = own.token_id == chosen, proposal is not own
    return Outcome(
        tokens=1,
        overrides=int(not stood),
        remembered=int(replaced),
        saved=int(replaced and proposal.token_id == chosen),
        spoiled=int(replaced and stood),
    )


def total(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the counts of some texts together."""
    return sum(outcomes, Outcome())
