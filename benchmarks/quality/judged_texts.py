"""The cloud's own texts from explored ones, with the device's proposals, and texts after deviations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.exploration.explorer import Explorer
from benchmarks.quality.exploration.plain_texts import cloud_writes
from benchmarks.quality.exploration.text_tree import ROOT, TextTree
from benchmarks.simulation.trace import ExtendedProposal
from chaperone_common.errors import ConfigError
from edge_client.gate import Features
from edge_client.gate.gate_model import GateModel

SIGNALS: Mapping[str, Callable[[ExtendedProposal], float]] = {  # a higher value is asked about sooner
    "entropy": lambda proposal: proposal.signal.entropy_nats,
    "top1_probability": lambda proposal: -proposal.signal.top1_probability,  # BiLD's criterion
    "margin": lambda proposal: -proposal.signal.margin,
    "coupled_margin": lambda proposal: -proposal.signal.coupled_margin,
    "varentropy": lambda proposal: proposal.signal.varentropy,
    "disagreement": lambda proposal: proposal.disagreement,  # U-HLM's criterion
    "risk_curve": lambda proposal: proposal.signal.risk,
}


@dataclass(frozen=True, slots=True)
class JudgedText:
    """The cloud's text of one tree."""

    tree: TextTree
    nodes: tuple[int, ...]  # before each token, [tokens]
    token_ids: tuple[int, ...]
    proposals: tuple[ExtendedProposal, ...]

    @classmethod
    def of(cls, tree: TextTree, eos_token_ids: Collection[int], max_new_tokens: int) -> JudgedText:
        """Follow the cloud's choices to the end; raise ConfigError if one of the models has not answered on the way."""
        nodes: list[int] = []
        token_ids: list[int] = []
        proposals: list[ExtendedProposal] = []
        node = ROOT
        while len(token_ids) < max_new_tokens and (not token_ids or token_ids[-1] not in eos_token_ids):
            if node not in tree.choices or node not in tree.proposals:
                raise ConfigError(
                    f"explored: the models were not asked all along the cloud's text of {tree.id}; run "
                    "`python -m benchmarks quality` with --strategies cloud --read-along first"
                )
            nodes.append(node)
            token_ids.append(tree.choices[node])
            proposals.append(tree.proposals[node])
            node = tree.child(node, token_ids[-1])
        return cls(tree, tuple(nodes), tuple(token_ids), tuple(proposals))

    @property
    def overridden(self) -> NDArray[np.bool_]:
        """True where the device proposed another token, [tokens]."""
        pairs = zip(self.proposals, self.token_ids, strict=True)
        return np.array([proposal.token_id != token_id for proposal, token_id in pairs], np.bool_)

    def features(self, read: Callable[[int], str]) -> list[list[float]]:
        """Return the features of each token for a calibrated gate, [tokens, features]."""
        features, rows = Features(read), []
        for token_id, proposal in zip(self.token_ids, self.proposals, strict=True):
            rows.append(features.of(proposal.token_id, proposal.runner_up, proposal.signal))
            features.append(token_id, proposal.signal)
        return rows


def risks_by(gate: GateModel, features: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Return the risks of some tokens by a calibrated gate, [tokens]."""
    return np.array([gate.risk([*row]) for row in features])


@dataclass(frozen=True, slots=True)
class Deviation:
    """An override that is left out: the device's token stays at `place`, and the cloud writes on after it."""

    text: int  # index
    place: int


def sampled(texts: Sequence[JudgedText], each: int, seed: int = 0) -> list[Deviation]:
    """Return up to `each` overrides of each text, drawn at random."""
    dice = Random(seed)
    drawn = []
    for index, text in enumerate(texts):
        places = [int(place) for place in np.flatnonzero(text.overridden)]
        drawn += [Deviation(index, place) for place in sorted(dice.sample(places, min(each, len(places))))]
    return drawn


def written_after(
    deviations: Sequence[Deviation],
    texts: Sequence[JudgedText],
    explorer: Explorer,
    *,
    eos_token_ids: Collection[int],
    max_new_tokens: int,
) -> dict[Deviation, tuple[int, ...]]:
    """Return the whole text after each deviation, written by the cloud; those of different texts at the same time."""
    written: dict[Deviation, tuple[int, ...]] = {}
    waiting = [*deviations]
    while waiting:
        first_of_text = {one.text: one for one in reversed(waiting)}  # the models hold one text of a tree at a time
        batch = [first_of_text[text] for text in sorted(first_of_text)]
        waiting = [one for one in waiting if one not in batch]
        begun = {texts[one.text].tree: _begun(one, texts[one.text]) for one in batch}
        paths = cloud_writes(explorer, begun, eos_token_ids=eos_token_ids, max_new_tokens=max_new_tokens)
        for one in batch:
            tree = texts[one.text].tree
            written[one] = tuple(tree.tokens[node] for node in paths[tree][1:])
    return written


def _begun(one: Deviation, text: JudgedText) -> int:
    """Return the node after the device's token."""
    return text.tree.child(text.nodes[one.place], text.proposals[one.place].token_id)
