"""The answers of both models after all texts that begin with one prompt."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.simulation.trace import ExtendedProposal, extended
from chaperone_common.errors import ConfigError
from chaperone_common.types import Proposal, Signal
from edge_client.model.uncertainty import risk

FORMAT = 1
_DIGITS = 4  # significant digits of a signal
_SIGNAL = (
    "entropy_nats",
    "top1_probability",
    "margin",
    "coupled_margin",
    "varentropy",
)  # the risk is computed from them
ROOT = 0  # the end of the prompt


@dataclass(slots=True, eq=False)
class TextTree:
    """A tree of texts: a node is its parent's text and one token more. `ROOT` is the prompt."""

    id: str
    prompt: tuple[int, ...]
    parents: list[int] = field(default_factory=lambda: [ROOT])
    tokens: list[int] = field(default_factory=lambda: [-1])  # the last token of each text
    proposals: dict[int, ExtendedProposal] = field(default_factory=dict)  # of the device's model, by node
    choices: dict[int, int] = field(default_factory=dict)  # the cloud's next tokens, by node
    # Cross-entropy of a node's last token, where the cloud's choice is another one.
    nats: dict[int, float] = field(default_factory=dict)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def node(self, text: Sequence[int]) -> int:
        """Return the node of a text, prompt included; raise ValueError if it does not begin with the prompt."""
        if tuple(text[: len(self.prompt)]) != self.prompt:
            raise ValueError(f"text: its first {len(self.prompt)} tokens are not the prompt of {self.id}")
        node = ROOT
        for token_id in text[len(self.prompt) :]:
            node = self.child(node, token_id)
        return node

    def child(self, node: int, token_id: int) -> int:
        """Return the node of a text with one token more."""
        found = self._children.get((node, token_id))
        if found is None:
            found = len(self.parents)
            self.parents.append(node)
            self.tokens.append(token_id)
            self._children[node, token_id] = found
        return found

    def propose(self, node: int, proposal: ExtendedProposal) -> None:
        """Record the proposal of the device's model, with the precision of a file."""
        measured = {name: _short(getattr(proposal.signal, name)) for name in _SIGNAL}
        kept = Signal(risk=risk(measured["entropy_nats"], measured["coupled_margin"]), **measured)
        known = Proposal(proposal.token_id, kept, proposal.runner_up)
        self.proposals[node] = extended(known, _short(proposal.disagreement))

    def path(self, node: int) -> list[int]:
        """Return the nodes from `ROOT` to this one, both included."""
        nodes = [node]
        while nodes[-1] != ROOT:
            nodes.append(self.parents[nodes[-1]])
        return nodes[::-1]

    def text(self, node: int) -> list[int]:
        """Return the tokens of a node, prompt included."""
        return [*self.prompt, *(self.tokens[at] for at in self.path(node)[1:])]

    def to_json(self) -> dict[str, Any]:
        """Return a line of a file; a parent is written as the distance back, mostly 1."""
        nodes = sorted(self.proposals)
        proposals = [self.proposals[node] for node in nodes]
        signals = [proposal.signal for proposal in proposals]
        return {
            "id": self.id,
            "prompt": self.prompt,
            "back": [node - parent for node, parent in enumerate(self.parents)][1:],
            "tokens": self.tokens[1:],
            "choices": _sparse(self.choices),
            "nats": _sparse({node: _short(nats) for node, nats in self.nats.items()}),
            "proposals": {
                "node": _differences(nodes),
                "token_id": [proposal.token_id for proposal in proposals],
                "runner_up": [proposal.runner_up for proposal in proposals],
                **{name: [getattr(signal, name) for signal in signals] for name in _SIGNAL},
                "disagreement": [proposal.disagreement for proposal in proposals],
            },
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> TextTree:
        """Read a line of a file."""
        tree = cls(row["id"], tuple(row["prompt"]))
        for node, (back, token_id) in enumerate(zip(row["back"], row["tokens"], strict=True), start=1):
            tree.child(node - back, token_id)
        tree.choices = dict(zip(_sums(row["choices"]["node"]), row["choices"]["value"], strict=True))
        tree.nats = dict(zip(_sums(row["nats"]["node"]), row["nats"]["value"], strict=True))
        columns = row["proposals"]
        for index, node in enumerate(_sums(columns["node"])):
            signal = Signal(risk=0.0, **{name: float(columns[name][index]) for name in _SIGNAL})
            proposal = Proposal(columns["token_id"][index], signal, columns["runner_up"][index])
            tree.propose(node, extended(proposal, columns["disagreement"][index]))
        return tree


def load_trees(path: Path) -> tuple[dict[str, Any], dict[str, TextTree]]:
    """Return the header of a file, and its trees by id; raise ConfigError if it is not such a file."""
    return read_header(path), {tree.id: tree for tree in read_trees(path)}


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a file; raise ConfigError if it is not such a file."""
    with _rows(path) as rows:
        return _checked_header(path, next(rows))


def read_trees(path: Path) -> Iterator[TextTree]:
    """Yield the trees of a file, with one of them in memory; raise ConfigError if it is not such a file."""
    with _rows(path) as rows:
        _checked_header(path, next(rows))
        yield from map(TextTree.from_json, rows)


def _checked_header(path: Path, header: dict[str, Any]) -> dict[str, Any]:
    if header.get("format") != FORMAT:
        raise ConfigError(f"{path}: format {header.get('format')!r}, expected {FORMAT}; explore again")
    return header


@contextmanager
def _rows(path: Path) -> Iterator[Iterator[Any]]:
    """Open a file as JSON lines; whatever is wrong with them is a ConfigError."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            yield map(json.loads, lines)
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, AttributeError, StopIteration) as error:
        raise ConfigError(f"{path}: not a file of explored texts ({error}); explore again") from None


def save_trees(path: Path, header: Mapping[str, Any], trees: Iterable[TextTree]) -> None:
    """Write the whole file again; an interruption leaves the old one intact."""
    unfinished = path.with_name(path.name + ".part")
    lines = [{**header, "format": FORMAT}, *(tree.to_json() for tree in trees)]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    unfinished.write_bytes(gzip.compress(text.encode(), compresslevel=6, mtime=0))
    unfinished.replace(path)


def _sparse(values: Mapping[int, Any]) -> dict[str, list[Any]]:
    nodes = sorted(values)
    return {"node": _differences(nodes), "value": [values[node] for node in nodes]}


def _differences(numbers: Sequence[int]) -> list[int]:
    return [number - before for before, number in zip((0, *numbers), numbers, strict=False)]


def _sums(differences: Sequence[int]) -> list[int]:
    total, numbers = 0, []
    for difference in differences:
        total += difference
        numbers.append(total)
    return numbers


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
