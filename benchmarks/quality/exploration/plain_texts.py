"""Texts that one model writes alone and the other one reads, a group at a time, without an engine.

Strategies with the same texts then find all answers. This takes about half the time of asking through their engines.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from benchmarks.quality.exploration.explorer import Explorer
from benchmarks.quality.exploration.text_tree import ROOT, TextTree

Next = Callable[[TextTree, int], int]


def cloud_writes(
    explorer: Explorer,
    begun: Mapping[TextTree, int],
    *,
    eos_token_ids: Collection[int],
    max_new_tokens: int,
) -> dict[TextTree, list[int]]:
    """Return the cloud's texts after some nodes, one of each tree: the nodes from the root on, [tokens + 1]."""

    def chosen(tree: TextTree, node: int) -> int:
        return explorer.choices(tree, [node])[0]

    def expect(tree: TextTree, node: int) -> None:
        explorer.expect_choices(tree, [node])

    return _written(begun, expect, chosen, eos_token_ids, max_new_tokens)


def device_writes(
    explorer: Explorer,
    begun: Mapping[TextTree, int],
    *,
    eos_token_ids: Collection[int],
    max_new_tokens: int,
) -> dict[TextTree, list[int]]:
    """Return the device's texts after some nodes, one of each tree; see `cloud_writes`."""

    def proposed(tree: TextTree, node: int) -> int:
        return explorer.proposal(tree, node).token_id

    return _written(begun, explorer.expect_proposal, proposed, eos_token_ids, max_new_tokens)


def device_reads(explorer: Explorer, paths: Mapping[TextTree, Sequence[int]]) -> None:
    """Let the device propose at each node of some texts that has a token after it."""
    for tree, nodes in paths.items():
        explorer.propose_along(tree, nodes[:-1])


def _written(
    begun: Mapping[TextTree, int],
    expect: Callable[[TextTree, int], None],
    said: Next,
    eos_token_ids: Collection[int],
    max_new_tokens: int,
) -> dict[TextTree, list[int]]:
    paths = {tree: tree.path(node) for tree, node in begun.items()}

    def goes_on(tree: TextTree) -> bool:
        nodes = paths[tree]
        ended = nodes[-1] != ROOT and tree.tokens[nodes[-1]] in eos_token_ids
        return not ended and len(nodes) <= max_new_tokens

    while growing := [tree for tree in paths if goes_on(tree)]:
        for tree in growing:
            expect(tree, paths[tree][-1])
        for tree in growing:
            paths[tree].append(tree.child(paths[tree][-1], said(tree, paths[tree][-1])))
    return paths
