"""The scores that beams need of the large model, in place of choices: a request, and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Scoring:
    """A request for scores of the last token of a text, and of each branch token next to it.

    Both lists have an entry for each of these, in this order. With temperature 0 the other tokens of a node are the
    likeliest ones, in order; else they are drawn.
    """

    listed: tuple[tuple[int, ...], ...]  # the tokens of each node's row
    nodes: tuple[int, ...]  # the number of each node: its noise
    others: int  # tokens wanted of each node that its row does not list


class Scored(NamedTuple):
    """A token that may follow a text, as the large model sees it."""

    token_id: int
    log_p: float  # after temperature and truncation: beams are drawn with it; -inf if it was cut off
    logprob: float  # the model's own, at temperature 1


@dataclass(frozen=True, slots=True)
class NodeScores:
    """The large model's law after one node."""

    listed: tuple[Scored, ...]  # the tokens of the node's row, in its order; empty for a node without one
    others: tuple[Scored, ...]  # of all other tokens: as many as wanted; none if they have no mass
    other_mass: float  # probability of all other tokens together; not used by beam search


@dataclass(frozen=True, slots=True)
class Scores:
    """The answer to a `Scoring`: the scores of each node."""

    nodes: tuple[NodeScores, ...]
