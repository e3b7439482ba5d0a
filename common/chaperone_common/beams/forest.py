"""A forest of drafted beams, and the numbers of its texts. Pure.

The small model draws W_S times in each layer, and two draws can be the same text. So there are two numberings: a
*slot* is a draw of a layer, in order, and a *node* is a distinct text. Layer 0 has the input beams as its slots. A node
is read once by each model, but each of its slots is a beam of its own for the rule.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from chaperone_common.beams.draft_row import DraftRow

MAX_FOREST_WIDTH = 16  # draws of a layer
MAX_FOREST_DEPTH = 16  # layers


class Draw(NamedTuple):
    """One draw of the small model: a token after a beam of the layer before."""

    parent: int  # slot of the layer before
    place: int  # of the token in the parent's row


class Node(NamedTuple):
    """A text of the forest: a token after another text."""

    parent: int  # node
    token_id: int


@dataclass(frozen=True, slots=True)
class Forest:
    """Draws of the small model, layer after layer, and the laws that they were drawn from."""

    rows: tuple[DraftRow, ...] = ()  # of all nodes that have one, in the order of their numbers
    layers: tuple[tuple[Draw, ...], ...] = ()
    stopped: tuple[int, ...] = ()  # nodes whose token completes a stop string

    @property
    def depth(self) -> int:
        """The number of layers, gamma."""
        return len(self.layers)


@dataclass(slots=True)
class Numbering:
    """The slots and nodes of a growing forest, the same on both ends.

    Nodes are numbered from 0: the distinct input beams first, then the texts of each layer in the order of their first
    draw. A node whose token ends the text has no row, and no layer continues it. Such a token is end-of-text, or it
    completes a stop string. Only the device reads text, so it names the latter nodes.
    """

    inputs: tuple[int, ...]  # the node of each input beam
    eos_token_ids: Collection[int]
    stopped: set[int] = field(default_factory=set)  # nodes whose token completes a stop string
    nodes: list[Node | None] = field(init=False)  # None for an input beam
    slots: list[tuple[int, ...]] = field(init=False)  # the node of each slot, by layer
    parents: list[tuple[int, ...]] = field(init=False)  # of each slot: a slot of the layer before
    places: list[int] = field(init=False)  # of each node's token in its parent's row; 0 for an input beam
    log_q: list[float] = field(init=False)  # by node: log-probability of its tokens after the input beam, as drawn
    rows: dict[int, DraftRow] = field(init=False, default_factory=dict)  # by node

    def __post_init__(self) -> None:
        distinct = len(set(self.inputs))
        if not self.inputs or set(self.inputs) != set(range(distinct)):
            raise ValueError(f"inputs: {self.inputs} are not numbers of nodes from 0 on")
        self.nodes = [None] * distinct
        self.slots = [self.inputs]
        self.parents = [()]
        self.places = [0] * distinct
        self.log_q = [0.0] * distinct

    @property
    def depth(self) -> int:
        """Layers so far."""
        return len(self.slots) - 1

    def growing(self) -> list[int]:
        """Return the nodes of the last layer that can be continued, in order: they need rows for a further layer."""
        return sorted({node for node in self.slots[-1] if not self.ends(node)})

    def ends(self, node: int) -> bool:
        """Return whether a node's token ends its text."""
        found = self.nodes[node]
        return node in self.stopped or (found is not None and found.token_id in self.eos_token_ids)

    def continue_with(self, rows: Sequence[DraftRow], draws: Sequence[Draw]) -> None:
        """Add a layer: rows of the nodes that are growing, and draws from them.

        Raises ValueError for impossible ones.
        """
        growing = self.growing()
        if len(rows) != len(growing):
            raise ValueError(f"rows: {len(rows)} in layer {self.depth}; it has {len(growing)} texts to continue")
        self.rows.update(zip(growing, rows, strict=True))
        found: dict[Node, int] = {}
        slots = []
        laws = {node: np.log(row.law()) for node, row in zip(growing, rows, strict=True)}
        for number, (parent, place) in enumerate(draws):
            node = self._parent(number, parent, place)
            text = Node(node, self.rows[node].token_ids[place])
            if text not in found:
                found[text] = len(self.nodes)
                self.nodes.append(text)
                self.places.append(place)
                self.log_q.append(self.log_q[node] + float(laws[node][place]))
            slots.append(found[text])
        self.slots.append(tuple(slots))
        self.parents.append(tuple(parent for parent, _ in draws))

    def _parent(self, number: int, parent: int, place: int) -> int:
        before = self.slots[-1]
        if not 0 <= parent < len(before):
            raise ValueError(f"draws: draw {number} of layer {self.depth} continues slot {parent} of {len(before)}")
        node = before[parent]
        if self.ends(node):
            raise ValueError(
                f"draws: draw {number} of layer {self.depth} continues slot {parent}, whose text has ended"
            )
        if not 0 <= place < len(self.rows[node]):
            raise ValueError(
                f"draws: draw {number} of layer {self.depth} is number {place} in a row of "
                f"{len(self.rows[node])} tokens"
            )
        return node

    def path(self, node: int) -> tuple[int, list[int]]:
        """Return the input beam that a node continues, as its node, and the tokens after it."""
        tokens: list[int] = []
        while (found := self.nodes[node]) is not None:
            tokens.append(found.token_id)
            node = found.parent
        return node, tokens[::-1]


def numbered(forest: Forest, inputs: Sequence[int], eos_token_ids: Collection[int]) -> Numbering:
    """Return the numbers of a whole forest. Raises ValueError for one that no small model can have drawn."""
    if forest.depth > MAX_FOREST_DEPTH:
        raise ValueError(f"layers: {forest.depth}; at most {MAX_FOREST_DEPTH} are allowed")
    numbering = Numbering(tuple(inputs), eos_token_ids, set(forest.stopped))
    drafted = len(numbering.nodes)
    used = 0
    for layer in forest.layers:
        if not 1 <= len(layer) <= MAX_FOREST_WIDTH:
            raise ValueError(f"draws: {len(layer)} in layer {numbering.depth}; give 1 to {MAX_FOREST_WIDTH}")
        rows = forest.rows[used : used + len(numbering.growing())]
        used += len(rows)
        numbering.continue_with(rows, layer)
    if used < len(forest.rows):
        raise ValueError(f"rows: {len(forest.rows)}, and the layers continue {used} texts")
    if unknown := [node for node in forest.stopped if not drafted <= node < len(numbering.nodes)]:
        raise ValueError(f"stopped: {unknown[0]} is none of the nodes {drafted} to {len(numbering.nodes) - 1}")
    return numbering
