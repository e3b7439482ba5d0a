"""The report of `chaperone-cloud models check`, as JSON and as lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from chaperone_common.command.sizes import shown_bytes
from cloud_supervisor.pairs.verdict import RULE, Agreement, Verdict


@dataclass(frozen=True)
class ModelReport:
    """One model of the pair; None stands for a number that is not known."""

    model: str
    source: str
    architecture: str | None = None
    problem: str | None = None  # reason why it cannot be converted, or is not known to be
    parameters: int | None = None
    vocabulary_size: int | None = None
    tokenizer_digest: str | None = None
    adapter: str | None = None  # its name, if one is merged into the model


@dataclass(frozen=True)
class Times:
    """The times in milliseconds that the verdict is made for."""

    draft_ms: float
    draft_source: str  # "given", or how the time was estimated
    cloud_ms: float
    cloud_source: str
    rtt_ms: float
    rtt_source: str


@dataclass(frozen=True)
class Report:
    """All that is known of a pair before it is converted; None stands for what is not known."""

    pair: str | None  # its name in the registry
    edge: ModelReport
    cloud: ModelReport
    verdict: Verdict
    same_vocabulary: bool | None = None
    device_bytes: int | None = None  # of the artefact, estimated
    cloud_bytes: dict[str, int] | None = None  # of the weights in memory, estimated, by dtype
    kv_bytes_per_token: dict[str, int] | None = None  # of a text in the cloud, by dtype
    agreement: Agreement | None = None
    agreement_problem: str | None = None  # reason why it was not measured
    times: Times | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the values of the report, with the rule of the verdict."""
        values = asdict(self)
        if self.agreement is not None:
            low, high = self.agreement.interval
            shares = {"share": self.agreement.share, "low": low, "high": high}
            values["agreement"] |= {name: round(share, 4) for name, share in shares.items()}
        values["verdict"]["rule"] = RULE
        return values

    def lines(self) -> Iterator[str]:
        """Yield the report as text."""
        for role, model in (("edge", self.edge), ("cloud", self.cloud)):
            known = f"architecture {model.architecture}" if model.architecture else "architecture unknown"
            size = f", {model.parameters / 1e6:,.1f} million weights" if model.parameters is not None else ""
            adapter = f", with adapter {model.adapter}" if model.adapter is not None else ""
            yield f"{role:11}{model.model} ({model.source}): {known}{size}{adapter}"
            yield f"{'':11}{'converts' if model.problem is None else model.problem}"
        yield f"{'vocabulary':11}{self._vocabulary()}"
        if self.device_bytes is not None:
            yield f"{'device':11}about {shown_bytes(self.device_bytes)} of files, and as much memory"
        if self.cloud_bytes is not None and self.kv_bytes_per_token is not None:
            memory = ", ".join(f"{shown_bytes(size)} in {dtype}" for dtype, size in self.cloud_bytes.items())
            yield f"{'memory':11}about {memory}"
            kept = ", ".join(f"{shown_bytes(size)} in {dtype}" for dtype, size in self.kv_bytes_per_token.items())
            yield f"{'':11}and for each token of a text {kept}"
        yield f"{'agreement':11}{self._agreement()}"
        if (times := self.times) is not None:
            yield f"{'times':11}draft {times.draft_ms:.1f} ms ({times.draft_source})"
            yield f"{'':11}token of the cloud {times.cloud_ms:.1f} ms ({times.cloud_source})"
            yield f"{'':11}round trip {times.rtt_ms:.1f} ms ({times.rtt_source})"
        yield f"{'verdict':11}{self.verdict.answer}: {self.verdict.reason}"
        if self.times is not None:
            yield f"{'rule':11}{RULE}"

    def _vocabulary(self) -> str:
        if self.same_vocabulary is None:
            return "not compared"
        if self.same_vocabulary:
            return f"the same, {self.edge.vocabulary_size:,} ids"
        sides = (
            f"{where} {model.vocabulary_size} ids, {model.tokenizer_digest}"
            for where, model in (("device", self.edge), ("cloud", self.cloud))
        )
        return f"different: {'; '.join(sides)}"

    def _agreement(self) -> str:
        if self.agreement is None:
            return f"not measured{f': {self.agreement_problem}' if self.agreement_problem else ''}"
        low, high = self.agreement.interval
        return (
            f"{self.agreement.share:.2f} of {self.agreement.tokens} tokens (95% interval {low:.2f} to {high:.2f}), "
            "greedy, before the device's model is quantised"
        )
