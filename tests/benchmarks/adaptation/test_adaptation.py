"""The study of the memory of corrections, on small files of explored texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import parser_of
from benchmarks.adaptation import run as study
from benchmarks.adaptation.replay import CloudText, Outcome, written
from benchmarks.quality.exploration.text_tree import TextTree, load_trees, read_trees, save_trees
from benchmarks.simulation.trace import ExtendedProposal
from chaperone_common.errors import ConfigError
from chaperone_common.types import Signal
from edge_client.model.corrections import Context, CorrectionMemory

SIGNAL = Signal(entropy_nats=0.5, top1_probability=0.7, margin=0.5, coupled_margin=1.0, risk=0.2)
PROMPT = (1, 2, 3)
CHOSEN = (4, 5, 6, 7)
PROPOSED = (4, 9, 6, 9)  # two are overridden


def tree_of(name: str, chosen: Sequence[int] = CHOSEN, proposed: Sequence[int] = PROPOSED) -> TextTree:
    """Return a tree with the cloud's text, the device's proposals along it, and a choice after its end."""
    tree = TextTree(name, PROMPT)
    for place, (token_id, own) in enumerate(zip(chosen, proposed, strict=True)):
        node = tree.node([*PROMPT, *chosen[:place]])
        tree.choices[node] = token_id
        tree.propose(node, ExtendedProposal(own, SIGNAL, 0, disagreement=0.5))
    tree.choices[tree.node([*PROMPT, *chosen])] = 8
    return tree


def studied(folder: Path, *options: str) -> dict[str, Any]:
    return study.run(parser_of("adaptation").parse_args(["--explored", str(folder), *options]))


def save(path: Path, *trees: TextTree) -> None:
    save_trees(path, {"suite": path.name, "max_new_tokens": 10}, trees)


def test_a_text_that_is_written_twice_has_no_overrides_the_second_time() -> None:
    text = CloudText.of(tree_of("a"), 10)
    assert [chosen for _, chosen in text.tokens] == [*CHOSEN]
    memory = CorrectionMemory([Context(3, 1)])
    assert written(text, memory) == Outcome(tokens=4, overrides=2)
    again = written(text, memory)
    assert again == Outcome(tokens=4, overrides=2, remembered=2, saved=2)
    assert again.overrides_with_memory == 0


def test_a_choice_that_the_memory_spoils_is_counted() -> None:
    memory = CorrectionMemory([Context(3, 1)])
    written(CloudText.of(tree_of("a"), 10), memory)
    other = written(CloudText.of(tree_of("b", (4, 9), (4, 9)), 10), memory)
    assert other == Outcome(tokens=2, remembered=1, spoiled=1)
    assert other.overrides_with_memory == 1


def test_a_text_has_at_most_the_tokens_that_were_explored() -> None:
    assert len(CloudText.of(tree_of("a"), 3).tokens) == 3


def test_the_study_counts_texts_after_those_on_which_the_contexts_were_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(study.CHOSEN_ON, "prose", 1)
    save(tmp_path / "prose.jsonl.gz", *(tree_of(name) for name in "abcd"))
    [(_, figures)] = studied(tmp_path, "--suites", "prose")["summary"].items()
    assert (figures["texts"], figures["tokens"], figures["overrides"]) == (3, 12, 6)
    assert figures["overrides_per_100_tokens"]["without"] == 50.0
    # The prompt is shorter than the long context. The short one proposes after two corrections: in the third text.
    assert (figures["saved"], figures["spoiled"], figures["entries"]) == (2, 0, 2)
    assert figures["fewer_overrides"] == pytest.approx(1 / 3, abs=1e-3)
    assert figures["same_texts_again"]["overrides_per_100_tokens"]["with"] == 0.0
    whole = studied(tmp_path, "--suites", "prose", "--whole")
    assert whole["summary"]["prose"]["texts"] == 4
    assert whole["settings"]["left_out_texts"] == {"prose": 0}


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prose\.jsonl\.gz: not a file of explored texts"):
        studied(tmp_path, "--suites", "prose")
    save(tmp_path / "prose.jsonl.gz", tree_of("a"))
    with pytest.raises(ConfigError, match="no text is left after the first 12; use --whole"):
        studied(tmp_path, "--suites", "prose")
    save(tmp_path / "prose.jsonl.gz", TextTree("empty", PROMPT))
    with pytest.raises(ConfigError, match="was not asked along the cloud's text of empty"):
        studied(tmp_path, "--suites", "prose", "--whole")


def test_trees_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "prose.jsonl.gz"
    save(path, tree_of("a"), tree_of("b"))
    assert [tree.to_json() for tree in read_trees(path)] == [tree.to_json() for tree in load_trees(path)[1].values()]
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="not a file of explored texts"):
        next(read_trees(path))
