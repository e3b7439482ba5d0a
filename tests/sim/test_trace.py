"""Files of traces: a round trip keeps them, other files are refused, and the committed ones are sound."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

import benchmarks
from benchmarks.simulation.trace import ASTRAY_TOKENS, TraceFile, load_traces, save_traces, with_disagreement_as_risk
from chaperone_common.errors import ConfigError
from chaperone_common.types import SamplingParams
from tests.support.benchmarks.traces import extended_trace, measured_trace, trace_of

FOLDER = Path(benchmarks.__path__[0]) / "traces"
COMMITTED = sorted(FOLDER.glob("*.jsonl.gz"))


def test_a_saved_trace_loads_unchanged(tmp_path: Path) -> None:
    traces = (
        trace_of("+-+--"),
        replace(trace_of("++", ended=True), id="sampled", sampling=SamplingParams(temperature=0.7, seed=3)),
    )
    path = tmp_path / "some.jsonl.gz"
    save_traces(path, TraceFile({"pair": "tiny"}, traces))
    loaded = load_traces(path)
    assert loaded.traces == traces
    assert loaded.header["pair"] == "tiny"
    assert loaded.traces[0].matches == (True, False, True, False, False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["some.jsonl.gz"]


def test_values_that_extend_adds_are_saved_with_the_recorded_ones(tmp_path: Path) -> None:
    plain = trace_of("+-+")
    added = extended_trace(plain, cross_entropies={1: 2.25}, disagreements=(0.5, 0.125, 0.0))
    path = tmp_path / "some.jsonl.gz"
    save_traces(path, TraceFile({}, (added, plain)))
    assert load_traces(path).traces == (added, plain)
    assert load_traces(path).traces[0].source == str(path)
    _, with_both, with_neither = (json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines())
    assert with_both.pop("cross_entropies") == {"1": 2.25}
    assert with_both["proposals"].pop("disagreement") == [0.5, 0.125, 0.0]
    assert with_both == with_neither


def test_a_measured_trace_keeps_its_varentropies_and_token_texts(tmp_path: Path) -> None:
    plain, measured = trace_of("+-+"), measured_trace(trace_of("+-+"))
    assert measured.device is not None
    path = tmp_path / "some.jsonl.gz"
    save_traces(path, TraceFile({}, (measured, plain)))
    assert load_traces(path).traces == (measured, plain)
    _, with_both, with_neither = (json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines())
    assert with_both.pop("device")["token_texts"]["100"] == " 100"
    for columns in (with_both["proposals"], *with_both["astray"].values()):
        assert set(columns.pop("varentropy")) == {0.5}
    assert with_both == with_neither


def test_signals_of_any_size_are_rounded_to_four_digits(tmp_path: Path) -> None:
    trace = trace_of("-")
    tiny = replace(trace.proposals[0].signal, entropy_nats=1.23456e-7, coupled_margin=12.34567)
    path = tmp_path / "some.jsonl.gz"
    save_traces(path, TraceFile({}, (replace(trace, proposals=(replace(trace.proposals[0], signal=tiny),)),)))
    signal = load_traces(path).traces[0].proposals[0].signal
    assert (signal.entropy_nats, signal.coupled_margin) == (1.235e-7, 12.35)


@pytest.mark.parametrize(
    "content",
    [
        b"not gzip",
        gzip.compress(b""),
        gzip.compress(b"no json\n"),
        gzip.compress(b'{"format":99}\n'),
        gzip.compress(b'{"format":2}\n{"id":"x"}\n'),
        gzip.compress(b'{"format":2}\n' + 9999 * b" ")[:-12],
    ],
    ids=["bytes", "empty", "text", "format", "field", "cut"],
)
def test_an_invalid_file_of_traces_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"some\.jsonl\.gz: .*record"):
        load_traces(path)


def test_columns_of_wrong_lengths_are_refused() -> None:
    trace = trace_of("++")
    with pytest.raises(ConfigError, match="2 tokens, 1 proposals and 2 ranks"):
        replace(trace, proposals=trace.proposals[:1])


def test_the_repository_has_traces() -> None:
    assert COMMITTED, f"{FOLDER}: record them with `python -m benchmarks record`"


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_committed_traces_are_small_and_sound(path: Path) -> None:
    assert path.stat().st_size < 1_000_000
    file = load_traces(path)
    assert {"commit", "machine", "models", "prompts_sha256", "settings"} <= file.header.keys()
    for trace in file.traces:
        assert 0 < len(trace.token_ids) <= trace.max_new_tokens
        assert trace.ended == (trace.token_ids[-1] in trace.eos_token_ids)
        assert [rank == 0 for rank in trace.ranks] == list(trace.matches)
        assert trace.astray.keys() == {index for index, match in enumerate(trace.matches) if not match}
        assert trace.cross_entropies is not None
        assert trace.cross_entropies.keys() == trace.astray.keys()
        assert trace.device is not None
        assert trace.device.pair == file.header["pair"]
        assert trace.device.token_texts.keys() == trace.own_token_ids
        assert any(proposal.signal.varentropy > 0 for proposal in trace.proposals)
        assert all(0 <= proposal.signal.risk <= 1 for proposal in with_disagreement_as_risk(trace).proposals)
        for index, gone in trace.astray.items():
            chosen = [trace.proposals[index].token_id, *(proposal.token_id for proposal in gone)]
            assert not set(chosen[:-1]) & set(trace.eos_token_ids), "nothing is written after end-of-text"
            full = min(ASTRAY_TOKENS, trace.max_new_tokens - index - 1)
            assert len(gone) == full or chosen[-1] in trace.eos_token_ids
        for rank, proposal, token_id in zip(trace.ranks, trace.proposals, trace.token_ids, strict=True):
            assert (rank == 1) <= (proposal.runner_up == token_id)
