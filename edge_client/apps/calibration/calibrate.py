"""Calibration of a gate: the cloud judges each token of some texts, and a risk model is fitted to that."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chaperone_common.errors import ConfigError, InvalidRequest
from chaperone_common.files import replace_file
from chaperone_common.frames import Capabilities
from chaperone_common.types import Mode, Proposal, SamplingParams
from edge_client.apps.batch.lines import Line, read_lines, request_of
from edge_client.apps.batch.prompt_file import PromptFile, split_lines
from edge_client.client import EdgeClient
from edge_client.config import EdgeConfig
from edge_client.gate import Features
from edge_client.gate.gate_model import GateData, GatedModel

Say = Callable[[str], None]


def calibrate(config: EdgeConfig, prompts: str, out: Path, parameters: Mapping[str, Any], say: Say) -> None:
    """Write a gate file from the prompts of a JSON Lines file, or of standard input (`-`), with a running cloud.

    `parameters` are defaults for lines, as for `EdgeClient.request`. Raises InvalidRequest for prompts that cannot be
    used, ConfigError if a package is missing or `out` cannot be written, OutputLost, and errors of generations.
    An existing gate stays until the new one is complete.
    """
    try:
        from edge_client.apps.calibration.fitting import (  # not on devices that only use a gate
            export,
            fit,
            judged_tokens,
        )
    except ImportError as error:
        raise ConfigError(f"calibrate: {error.name} is missing; run `pip install 'chaperone-llm[calibrate]'`") from None
    with PromptFile(prompts) as source:
        _check_out(out, source)
        content = b"".join(iter(source.read, b""))
    config = config.model_copy(update={"gate": config.gate.model_copy(update={"file": None})})  # it is made here
    recording = _Recording(config, _lines(prompts, content), parameters, say)
    asyncio.run(recording.make())
    tokens = judged_tokens(recording.features, recording.overridden)
    data = GateData(
        prompts=Path(prompts).name,
        prompts_sha256=hashlib.sha256(content).hexdigest(),
        texts=len(recording.features),
        tokens=len(tokens.overridden),
        overrides=int(tokens.overridden.sum()),
        temperature=recording.sampling.temperature,
        seed=recording.sampling.seed,
    )
    gate = export(
        fit(tokens),
        tokens,
        edge=recording.edge,
        cloud=GatedModel(name=recording.cloud.model, digest=recording.cloud.model_digest),
        data=data,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    replace_file(out, [gate])
    say(f"{out}: {data.tokens} tokens of {data.texts} texts, {data.overrides} overridden")


class _Recording:
    """The features of all proposals along the cloud's texts, and which of them were overridden."""

    cloud: Capabilities
    edge: GatedModel

    def __init__(self, config: EdgeConfig, lines: Sequence[Line], parameters: Mapping[str, Any], say: Say) -> None:
        self._config = config
        self._lines = lines
        # One seed for all texts: a gate belongs to one way to sample, and can then be reproduced.
        self._parameters = {"seed": config.generation.seed or 0, **parameters}
        self._say = say
        self.features: list[list[list[float]]] = []
        self.overridden: list[list[bool]] = []
        self.sampling = SamplingParams()  # of all texts

    async def make(self) -> None:
        """Generate each text in `exact`, and collect the proposals of the device's model along it."""
        async with EdgeClient(self._config) as client:
            self.cloud = await client.capabilities()
            self.edge = GatedModel(name=client.manifest.model, digest=client.manifest.digest)
            for number, line in enumerate(self._lines, start=1):
                request = replace(request_of(client, line, self._parameters), mode=Mode.EXACT)
                if number > 1 and request.params.sampling != self.sampling:
                    raise InvalidRequest(
                        f"line {line.number}: it is sampled otherwise than the first; make a gate of each"
                    )
                self.sampling = request.params.sampling
                written = await client.generate(request)
                proposals = await client.proposals(request, written.token_ids)
                pairs = zip(proposals, written.token_ids, strict=True)
                self.features.append(features_of(written.token_ids, proposals, client.token_text))
                self.overridden.append([proposal.token_id != token_id for proposal, token_id in pairs])
                overridden = f"{sum(self.overridden[-1])} of {len(proposals)} tokens overridden"
                self._say(f"{number} of {len(self._lines)}: {overridden}")


def features_of(
    token_ids: Sequence[int], proposals: Iterable[Proposal], read: Callable[[int], str]
) -> list[list[float]]:
    """Return the features of the proposal at each position of a text."""
    features = Features(read)
    rows = []
    for token_id, proposal in zip(token_ids, proposals, strict=True):
        rows.append(features.of(proposal.token_id, proposal.runner_up, proposal.signal))
        features.append(token_id, proposal.signal)
    return rows


def _check_out(out: Path, source: PromptFile) -> None:
    """Raise ConfigError for a file that could not be replaced, before an hour of work."""
    if not out.parent.is_dir():
        raise ConfigError(f"--out: {out.parent} is no folder; make it first")
    if not os.access(Path(os.path.realpath(out)).parent, os.W_OK):
        raise ConfigError(f"--out: {out.parent} cannot be written to; name another folder")
    if not out.exists():
        return
    if not out.is_file():
        raise ConfigError(f"--out: {out} is no file; name one")
    if os.path.samestat(out.stat(), source.status):
        raise ConfigError(f"--out: {out} is the file that --prompts reads; name another one")


def _lines(prompts: str, content: bytes) -> list[Line]:
    blocks = iter([content, b""])
    lines = list(read_lines(split_lines(lambda: next(blocks))))
    for line in lines:
        if line.error is not None:
            raise InvalidRequest(f"{prompts}, line {line.number}: {line.error.message}")
    if not lines:
        raise InvalidRequest(f"{prompts}: no prompts; give one JSON object a line")
    return lines
