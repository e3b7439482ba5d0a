"""A text of an explored prompt, as the simulation plays it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.quality.exploration.explorer import Explorer
from benchmarks.quality.exploration.text_tree import TextTree
from benchmarks.simulation.script import CLOUD_FILLER, TOKENIZER_DIGEST, ScriptedModels
from chaperone_common.frames import Open
from chaperone_common.types import Proposal, SamplingParams, SessionId, Signal

_SURE = Signal(entropy_nats=0.0, top1_probability=1.0, margin=1.0, coupled_margin=30.0, risk=0.0)


class ExploredModels(ScriptedModels):
    """Answers with the models' own answers on any text.

    The models are asked again after a deviation that is kept. After an override everything is void: choices there are
    fillers, since a forward for them would change nothing.
    """

    def __init__(
        self,
        tree: TextTree,
        explorer: Explorer,
        sampling: SamplingParams,
        *,
        eos_token_ids: tuple[int, ...],
        max_new_tokens: int,
        lenient_nats: float | None = None,
        risk_is_disagreement: bool = False,
    ) -> None:
        """Choose the text's own token if its cross-entropy is at most `lenient_nats`."""
        self._tree = tree
        self._explorer = explorer
        self._sampling = sampling
        self._eos_token_ids = eos_token_ids
        self._max_new_tokens = max_new_tokens
        self._lenient_nats = lenient_nats
        self._risk_is_disagreement = risk_is_disagreement
        self._kept: set[int] = set()  # positions of tokens that stand, even if the cloud would choose others

    @property
    def limit(self) -> int:
        return len(self._tree.prompt) + self._max_new_tokens

    def opening(self) -> Open:
        return Open(
            session_id=SessionId(self._tree.id),
            tokenizer_digest=TOKENIZER_DIGEST,
            sampling=self._sampling,
            max_new_tokens=self._max_new_tokens,
            eos_token_ids=self._eos_token_ids,
            prompt_token_ids=self._tree.prompt,
        )

    def keep(self, position: int) -> None:
        self._kept.add(position)

    def drop(self, position: int) -> None:
        self._kept = {kept for kept in self._kept if kept < position}

    def expect_proposal(self, token_ids: Sequence[int]) -> None:
        if len(token_ids) >= len(self._tree.prompt):
            self._explorer.expect_proposal(self._tree, self._tree.node(token_ids))

    def proposal(self, token_ids: Sequence[int]) -> Proposal:
        if len(token_ids) < len(self._tree.prompt):  # the prompt is read, and no continuation of a part of it is wanted
            return Proposal(self._tree.prompt[len(token_ids)], _SURE, self._tree.prompt[0])
        proposal = self._explorer.proposal(self._tree, self._tree.node(token_ids))
        if not self._risk_is_disagreement:
            return proposal
        return replace(proposal, signal=replace(proposal.signal, risk=proposal.disagreement))

    def expect_choices(self, token_ids: Sequence[int], count: int) -> None:
        if count:
            self._explorer.expect_choices(self._tree, self._nodes(token_ids, count))

    def choices(self, token_ids: Sequence[int], count: int) -> list[int]:
        if not count:
            return []
        nodes = self._nodes(token_ids, count)
        chosen = self._explorer.choices(self._tree, nodes)
        if self._lenient_nats is None:
            return chosen + [CLOUD_FILLER] * (count - len(chosen))
        for place, node in enumerate(nodes[1:]):
            own = self._tree.tokens[node]
            if own != chosen[place] and self._explorer.cross_entropy(self._tree, node) <= self._lenient_nats:
                chosen[place] = own
        return chosen

    def _nodes(self, token_ids: Sequence[int], count: int) -> list[int]:
        """Return the last `count` nodes of a text, without those after a known override."""
        path = self._tree.path(self._tree.node(token_ids))
        valid = len(path) if self._lenient_nats is not None else self._valid(path)
        return path[len(path) - count : valid]

    def _valid(self, path: Sequence[int]) -> int:
        """Return the number of leading nodes whose tokens are kept, or may be the cloud's own."""
        positions = range(len(self._tree.prompt), len(self._tree.prompt) + len(path) - 1)
        for place, position in enumerate(positions, start=1):
            choice = self._tree.choices.get(path[place - 1])
            if choice not in (None, self._tree.tokens[path[place]]) and position not in self._kept:
                return place
        return len(path)
