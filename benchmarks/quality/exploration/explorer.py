"""Both models of a pair, asked in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.exploration.device_texts import DeviceTexts
from benchmarks.quality.exploration.text_tree import TextTree
from benchmarks.simulation.trace import ExtendedProposal, extended
from chaperone_common.artefacts.manifest import ModelManifest
from chaperone_common.sampling import Softmax, choose, softmax
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import Choice, Proposal, SamplingParams
from cloud_supervisor.kv.store import KvStore
from cloud_supervisor.model.logits.choosing import coupled_choice
from cloud_supervisor.model.ports import ForwardRequest
from cloud_supervisor.model.torch_model import Dtype, TorchModel
from edge_client.model.onnx_model import OnnxModel
from edge_client.model.uncertainty import cross_entropy, disagreement, measure

KV_BYTES = 4 << 30
FORWARD_TOKENS = 512  # tokens of a forward of the cloud's model; more are hardly faster, and cost memory


class RecordingChooser:
    """The protocol's rule; it records the cross-entropy of each drafted token that differs from the choice."""

    def __init__(self) -> None:
        self.noted: list[float | None] = []  # for each choice since the list was emptied, in order

    def __call__(self, soft: Softmax, sampling: SamplingParams, position: int, drafted: int | None) -> Choice:
        choice = coupled_choice(soft, sampling, position, drafted)
        differs = drafted is not None and drafted != choice.token_id
        self.noted.append(cross_entropy(soft, drafted) if differs and drafted is not None else None)
        return choice


@dataclass(frozen=True, slots=True)
class RecordingModel:
    """The cloud's model with the records of its chooser."""

    model: TorchModel
    chooser: RecordingChooser

    @classmethod
    def of_manifest(
        cls, folder: Path, manifest: ModelManifest, *, dtype: Dtype | Literal["auto"], threads: int | None
    ) -> Self:
        """Load a folder as its manifest describes it; raises as `TorchModel.load` does."""
        chooser = RecordingChooser()
        model = TorchModel.of_manifest(folder, manifest, dtype=dtype, threads=threads, chooser=chooser)
        return cls(model, chooser)


def proposal_after(logits: NDArray[np.float32], sampling: SamplingParams, length: int) -> ExtendedProposal:
    """Return the proposal of the device's model after `length` tokens, from its logits [vocabulary]."""
    soft = softmax(logits, sampling.temperature)
    choice = choose(soft, sampling, length)
    proposal = Proposal(choice.token_id, measure(soft, choice), choice.runner_up)
    return extended(proposal, disagreement(logits, proposal.token_id))


_Wanted = dict[str, tuple[TextTree, set[int]]]  # by a tree's id: the tree, and its nodes with announced requests


class Explorer:
    """Answers requests for both models, and with each one the announced requests for the same model.

    The device's model is asked for each token, the cloud's from time to time. Announced requests to the cloud's model
    wait for the next one, so that its forwards are few. Both models work at the same time.
    """

    def __init__(
        self, device: OnnxModel, cloud: RecordingModel, sampling: SamplingParams, *, kv_bytes: int = KV_BYTES
    ) -> None:
        self._device = device
        self._cloud = cloud
        self._sampling = sampling
        self._caches = KvStore(
            cloud.model.kv_pool, budget_bytes=kv_bytes, bytes_per_token=cloud.model.kv_bytes_per_token
        )
        self._texts = DeviceTexts(device)
        self._wanted_proposals: _Wanted = {}
        self._wanted_choices: _Wanted = {}

    def expect_proposal(self, tree: TextTree, node: int) -> None:
        """Announce a request for the device's next token after a text."""
        if node not in tree.proposals:
            self._wanted_proposals.setdefault(tree.id, (tree, set()))[1].add(node)

    def expect_choices(self, tree: TextTree, nodes: Iterable[int]) -> None:
        """Announce a request for the cloud's next tokens after these texts, each the parent of the next."""
        missing = [node for node in nodes if node not in tree.choices]
        if missing:
            self._wanted_choices.setdefault(tree.id, (tree, set()))[1].update(missing)

    def proposal(self, tree: TextTree, node: int) -> ExtendedProposal:
        """Return the proposal of the device's model after a text."""
        if node not in tree.proposals:
            self.expect_proposal(tree, node)
            self._answer_proposals().result()
        return tree.proposals[node]

    def propose_along(self, tree: TextTree, nodes: Sequence[int]) -> None:
        """Let the device propose after each of these texts, each the parent of the next.

        It reads up to a chunk of tokens in one forward, and such forwards round differently from single steps.
        """
        missing = [place for place, node in enumerate(nodes) if node not in tree.proposals]
        if missing:
            along = nodes[missing[0] : missing[-1] + 1]
            self._device.worker.submit(self._propose_along, tree, along).result()

    def choices(self, tree: TextTree, nodes: Sequence[int]) -> list[int]:
        """Return the choices of the cloud's model after each of these texts, each the parent of the next."""
        if any(node not in tree.choices for node in nodes):
            self.expect_choices(tree, nodes)
            self._answer_choices()
        return [tree.choices[node] for node in nodes]

    def cross_entropy(self, tree: TextTree, node: int) -> float:
        """Return that of a text's last token under the cloud's model, which has chosen another one there; in nats."""
        if node not in tree.nats:  # the choice was known before this text existed
            self._read_together([(tree, [tree.parents[node], node])])
        # A near tie that now falls to the token has a difference of about 0.
        return tree.nats.setdefault(node, 0.0)

    def leave(self, tree: TextTree) -> None:
        """Forget what both models hold of a tree until the next request."""
        self._caches.free(tree.id)
        self._texts.leave(tree.id)

    def _answer_proposals(self) -> Future[None]:
        wanted, self._wanted_proposals = self._wanted_proposals, {}
        return self._device.worker.submit(self._propose, wanted)

    def _answer_choices(self) -> None:
        wanted, self._wanted_choices = self._wanted_choices, {}
        drafting = self._answer_proposals()
        try:
            self._read(wanted)
        finally:
            drafting.result()

    # --- The device's model, in its worker ---------------------------------------------------------------------------

    def _propose(self, wanted: _Wanted) -> None:
        """Propose after the wanted texts, one of each tree at a time."""
        left = [(tree, deque(sorted(nodes - tree.proposals.keys()))) for tree, nodes in wanted.values()]
        while left := [(tree, nodes) for tree, nodes in left if nodes]:
            places = {tree.id: (tree, nodes.popleft()) for tree, nodes in left}
            texts = {name: tree.text(node) for name, (tree, node) in places.items()}
            for name, logits in self._texts.after(texts):
                tree, node = places[name]
                tree.propose(node, proposal_after(logits, self._sampling, len(texts[name])))

    def _propose_along(self, tree: TextTree, nodes: Sequence[int]) -> None:
        text = tree.text(nodes[-1])
        lengths = range(len(text) - len(nodes) + 1, len(text) + 1)
        for node, length, logits in zip(nodes, lengths, self._texts.along(tree.id, text, len(nodes)), strict=True):
            if node not in tree.proposals:
                tree.propose(node, proposal_after(logits, self._sampling, length))

    # --- The cloud's model -------------------------------------------------------------------------------------------

    def _read(self, wanted: _Wanted) -> None:
        """Read the longest wanted path of each tree, then the wanted nodes that it did not cover."""
        left = [*wanted.values()]
        while left := [(tree, missing) for tree, nodes in left if (missing := nodes - tree.choices.keys())]:
            paths = [(tree, _covering(tree, missing)) for tree, missing in left]
            for batch in _batches(paths):
                self._read_together(batch)

    def _read_together(self, paths: Sequence[tuple[TextTree, list[int]]]) -> None:
        requests, wholes = [], []
        for tree, nodes in paths:
            text = TokenTree(tuple(tree.text(nodes[-1])))
            cache, held = self._caches.prepare(tree.id, text, num_choices=len(nodes))
            requests.append(ForwardRequest(cache, text.piece(held, text.end), len(nodes), self._sampling))
            wholes.append(text)
        noted = self._cloud.chooser.noted
        noted.clear()
        answers = self._cloud.model.forward(requests)
        nats_of_choices = iter(noted)
        for (tree, nodes), text, choices in zip(paths, wholes, answers, strict=True):
            self._caches.commit(tree.id, text)
            for place, (node, choice) in enumerate(zip(nodes, choices, strict=True)):
                tree.choices.setdefault(node, choice.token_id)
                nats = next(nats_of_choices)
                if nats is not None:
                    tree.nats[nodes[place + 1]] = nats


def _covering(tree: TextTree, missing: set[int]) -> list[int]:
    """Return the nodes of one path, from its first missing node to the deepest one."""
    path = tree.path(max(missing))  # children come after their parents, so this one is a leaf among the missing
    first = next(place for place, node in enumerate(path) if node in missing)
    return path[first:]


def _batches(
    paths: Sequence[tuple[TextTree, list[int]]],
) -> Iterator[list[tuple[TextTree, list[int]]]]:
    """Yield the paths in order, in batches that keep a forward small; an unread prompt counts whole."""
    batch: list[tuple[TextTree, list[int]]] = []
    tokens = 0
    for tree, nodes in paths:
        size = len(nodes) + (0 if tree.choices else len(tree.prompt))
        if batch and tokens + size > FORWARD_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append((tree, nodes))
        tokens += size
    if batch:
        yield batch
