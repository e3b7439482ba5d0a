"""`chaperone calibrate`: a gate is fitted, exported, loaded and used, and refused for other models."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import GateMismatch, InvalidRequest, ModelCorrupt, ModelMissing
from chaperone_common.frames import API_VERSION, Capabilities
from chaperone_common.session import Committed, Drafted
from chaperone_common.types import Mode, Origin, Promises
from cloud_supervisor.model.torch_model import TorchModel
from edge_client import EdgeClient, EdgeConfig, Failed, Finished
from edge_client.apps.calibration.fitting import curve, figures, fit, judged_tokens
from edge_client.apps.cli.main import main
from edge_client.config import CloudSettings, DeviceSettings, GateSettings
from edge_client.events import Event
from edge_client.gate import gating
from edge_client.gate.gate_model import CARD, GatedModel, GateModel
from edge_client.gate.gating import Gates, load_gate
from tests.support.device.gate import gate_for, synthetic
from tests.support.fakes.target import fake_target
from tests.support.processes.commands import environment, with_file_size
from tests.support.processes.servers import serving, serving_in_thread

CAPABILITIES = Capabilities(API_VERSION, "some model", "", 100, 100, 16)


def test_a_fit_ranks_calibrates_and_survives_its_file(tiny_pair: Path, tmp_path: Path) -> None:
    gate = gate_for(tiny_pair, tmp_path / "gate.onnx")
    features, overridden = synthetic(texts=12, seed=2)
    rows = [row for text in features for row in text]
    risks = np.array([gate.risk(row) for row in rows])
    fates = np.array([fate for text in overridden for fate in text])
    measured = figures(risks, fates, np.exp(np.array(rows)[:, 0]))
    assert measured["auc"] > 0.85
    assert measured["auc"] > measured["auc_coupled_margin"] - 0.02
    assert measured["brier_skill"] > 0.3
    assert measured["expected_calibration_error"] < 0.04
    assert gate.card.figures.keys() == measured.keys()
    assert gate.card.figures["expected_calibration_error"] < 0.02, "on the data of its calibration"
    assert len(gate.held_out.risks) == 24 * 120
    assert gate.held_out.overridden.sum() == len(gate.card.held_out_overrides)


def test_a_curve_rises_and_has_no_steps() -> None:
    random = np.random.default_rng(3)
    scores = random.random(2000)
    knots, risks = curve(scores, random.random(2000) < scores**2)
    assert (np.diff(knots) > 0).all()
    assert (np.diff(risks) >= 0).all()
    at = np.linspace(0.2, 0.8, 7)
    assert np.interp(at, knots, risks) == pytest.approx(at**2, abs=0.08)


def test_too_little_data_to_fit_is_refused() -> None:
    features, _ = synthetic(texts=6, tokens=10)
    with pytest.raises(InvalidRequest, match="6 texts with 0 of 60 tokens overridden; a gate needs"):
        fit(judged_tokens(features, [[False] * 10] * 6))


def test_an_invalid_gate_file_is_refused(tiny_pair: Path, tmp_path: Path) -> None:
    manifest = load_manifest(tiny_pair / "edge", role="edge")
    with pytest.raises(ModelMissing, match="there is no gate; calibrate one"):
        GateModel.load(tmp_path / "none.onnx", manifest)
    (tmp_path / "text.onnx").write_text("no")
    with pytest.raises(ModelCorrupt, match="onnxruntime cannot load it"):
        GateModel.load(tmp_path / "text.onnx", manifest)
    gate_for(tiny_pair, tmp_path / "gate.onnx")
    graph = onnx.load(tmp_path / "gate.onnx")
    graph.metadata_props[0].value = "{}"
    onnx.save(graph, tmp_path / "empty.onnx")
    with pytest.raises(ModelCorrupt, match="not those of a gate"):
        GateModel.load(tmp_path / "empty.onnx", manifest)
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "other.onnx")
    with pytest.raises(ModelCorrupt, match=f"no metadata '{CARD}'"):
        GateModel.load(tmp_path / "other.onnx", manifest)


def test_a_gate_of_other_models_is_refused(tiny_pair: Path, tmp_path: Path) -> None:
    gate = gate_for(tiny_pair, tmp_path / "gate.onnx")
    other = load_manifest(tiny_pair / "edge", role="edge").model_copy(update={"model": "another"})
    with pytest.raises(GateMismatch, match=r"made for the device model .* this one is another"):
        GateModel.load(tmp_path / "gate.onnx", other)
    gate.check_cloud("any model", "")
    gate.check_cloud(gate.card.cloud.name, gate.card.cloud.digest)
    with pytest.raises(GateMismatch, match="this one serves another"):
        gate.check_cloud("another", "sha256:1")


# --- With both ends --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(tiny_pair: Path, target: TorchModel) -> Iterator[str]:
    with serving_in_thread(target, tiny_pair) as (_, address):
        yield address


def make(address: str, folder: Path, *flags: str) -> Path:
    prompts = [{"id": number, "prompt": f"the list of {number} is sorted"} for number in range(16)]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(line) for line in prompts))
    arguments = ("--prompts", str(folder / "prompts.jsonl"), "--out", str(folder / "gate.onnx"))
    assert main(["calibrate", "--pair", "tiny", "--cloud", address, "--max-new-tokens", "32", *arguments, *flags]) == 0
    return folder / "gate.onnx"


@pytest.fixture(scope="module")
def made(tiny_pair: Path, address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(address, tmp_path_factory.mktemp("gate"))


def config(address: str, gate: Path | None) -> EdgeConfig:
    return EdgeConfig(
        pair="tiny",
        closing_audit=True,
        cloud=CloudSettings(address=address),
        device=DeviceSettings(threads=1, allow_spinning=False),
        gate=GateSettings(file=gate, catch=0.5, max_deviation=1.0),
    )


def test_a_gate_records_its_source_data(tiny_pair: Path, made: Path) -> None:
    manifest = load_manifest(tiny_pair / "edge", role="edge")
    card = GateModel.load(made, manifest).card
    assert card.edge == GatedModel(name=manifest.model, digest=manifest.digest)
    assert card.cloud.digest == load_manifest(tiny_pair / "cloud", role="cloud").digest
    assert (card.data.prompts, card.data.texts) == ("prompts.jsonl", 16)
    assert card.data.tokens == len(card.held_out_risks)
    assert card.data.overrides == len(card.held_out_overrides) >= 40
    assert {"scikit-learn", "skl2onnx"} <= card.versions.keys()


def test_sampled_texts_without_a_seed_share_one(tiny_pair: Path, address: str, tmp_path: Path) -> None:
    card = GateModel.load(
        make(address, tmp_path, "--temperature", "0.7"), load_manifest(tiny_pair / "edge", role="edge")
    ).card
    assert (card.data.temperature, card.data.seed) == (0.7, 0)


def test_gated_uses_the_calibrated_risk(address: str, made: Path) -> None:
    async def write(gate: Path | None) -> tuple[list[Event], float]:
        async with EdgeClient(config(address, gate)) as client:
            events = [event async for event in client.stream("the list of a", mode="gated", max_new_tokens=48)]
            return events, client.totals().tokens

    for gate in (made, None):
        events, seen = asyncio.run(write(gate))
        assert isinstance(events[-1], Finished)
        stats = events[-1].stats
        assert stats.audited_tokens == stats.skipped_tokens
        assert 0 < seen <= stats.completion_tokens
    calibrated, plain = (
        {event.position: event.signal for event in asyncio.run(write(gate))[0] if isinstance(event, Drafted)}
        for gate in (made, None)
    )
    shared = [at for at in calibrated if at in plain and calibrated[at].entropy_nats == plain[at].entropy_nats]
    assert shared
    assert all(0 < calibrated[at].risk < 1 for at in shared)
    assert any(calibrated[at].risk != plain[at].risk for at in shared)


def test_a_cloud_with_another_model_is_refused_in_gated_alone(tiny_pair: Path, tmp_path: Path) -> None:
    gate_for(tiny_pair, tmp_path / "gate.onnx")
    graph = onnx.load(tmp_path / "gate.onnx")
    card = json.loads(graph.metadata_props[0].value)
    card["cloud"]["digest"] = "sha256:of another"
    graph.metadata_props[0].value = json.dumps(card)
    onnx.save(graph, tmp_path / "gate.onnx")

    async def endings() -> list[Event]:
        async with (
            serving(fake_target(tiny_pair), tiny_pair) as (_, address),
            EdgeClient(config(address, tmp_path / "gate.onnx")) as client,
        ):
            return [
                [event async for event in client.stream("a", mode=mode, max_new_tokens=4)][-1]
                for mode in ("gated", "exact")
            ]

    gated, exact = asyncio.run(endings())
    assert isinstance(gated, Failed)
    assert isinstance(gated.error, GateMismatch)
    assert isinstance(exact, Finished)


@pytest.mark.parametrize("cloud_digest", ["its own", "of another"])
def test_the_gate_of_a_pair_is_used_where_it_fits(
    tiny_pair: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    cloud_digest: str,
) -> None:
    gate = gate_for(tiny_pair, tmp_path / "gate.onnx")
    monkeypatch.setattr(gating, "packaged_gate", lambda _: tmp_path / "gate.onnx")
    settings = GateSettings()
    gates = Gates(settings, load_gate(settings, load_manifest(tiny_pair / "edge", role="edge")))
    digest = gate.card.cloud.digest if cloud_digest == "its own" else "sha256:of another"
    begun = gates.control(Promises())
    gates.use_cloud(replace(CAPABILITIES, model_digest=digest))
    model = gates.risk_model(Mode.GATED, str, 3)
    assert (model is not None) == (cloud_digest == "its own")
    assert (gates.control(Promises()) is begun) == (cloud_digest == "its own"), "another workload"
    assert ("goes on without a calibrated gate" in caplog.text) == (cloud_digest != "its own")
    gates.use_cloud(replace(CAPABILITIES, model_digest=gate.card.cloud.digest))
    assert gates.risk_model(Mode.GATED, str, 3) is not None, "the right cloud is back"
    assert gates.risk_model(Mode.EXACT, str, 3) is None


def test_an_unusable_gate_of_a_pair_is_ignored(
    tiny_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "gate.onnx").write_text("no")
    monkeypatch.setattr(gating, "packaged_gate", lambda _: tmp_path / "gate.onnx")
    manifest = load_manifest(tiny_pair / "edge", role="edge")
    assert load_gate(GateSettings(), manifest) is None
    assert "gated goes without a calibrated gate" in caplog.text
    assert load_gate(GateSettings(file=None), manifest) is None
    with pytest.raises(ModelCorrupt):
        load_gate(GateSettings(file=tmp_path / "gate.onnx"), manifest)


OUT: list[tuple[str, str]] = [
    ("{folder}", "--out: {folder} is no file; name one"),
    ("{folder}/nothere/gate.onnx", "--out: {folder}/nothere is no folder; make it first"),
    ("{folder}/prompts.jsonl", "prompts.jsonl is the file that --prompts reads; name another one"),
    ("{folder}/symbolic", "symbolic is the file that --prompts reads; name another one"),
]


@pytest.mark.parametrize(("out", "words"), OUT, ids=[words for _, words in OUT])
def test_an_impossible_output_path_is_refused_before_the_calibration(
    tiny_pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, words: str
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"id": 1, "prompt": "a"}')
    (tmp_path / "symbolic").symlink_to(prompts)
    options = ("--pair", "tiny", "--cloud", "127.0.0.1:1", "--prompts", str(prompts))
    assert main(["calibrate", *options, "--out", out.format(folder=tmp_path)]) == 2
    assert words.format(folder=tmp_path) in capsys.readouterr().err
    assert prompts.read_text() == '{"id": 1, "prompt": "a"}'


def test_an_existing_gate_stays_until_the_new_one_is_complete(address: str, made: Path, tmp_path: Path) -> None:
    old = tmp_path / "gate.onnx"
    old.write_bytes(b"the old one")
    arguments = ("--pair", "tiny", "--cloud", address, "--prompts", "-", "--out", str(old), "--max-new-tokens", "32")
    process = subprocess.run(
        [*with_file_size(1000), "-m", "edge_client.apps.cli.main", "calibrate", *arguments],
        input=(made.parent / "prompts.jsonl").read_bytes(),
        capture_output=True,
        env=environment(),
        check=False,
    )
    assert (process.returncode, process.stderr.decode()) == (
        1,
        f"chaperone: {old}: cannot be written: File too large\n",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["gate.onnx"]
    assert old.read_bytes() == b"the old one"


def test_unusable_prompts_are_reported(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--pair", "tiny", "--cloud", address, "--out", str(tmp_path / "gate.onnx"))
    prompts = tmp_path / "prompts.jsonl"
    for content, message in (
        (None, "No such file or directory"),
        ("", "no prompts"),
        ("{", "line 1: not valid JSON"),
        ('{"id": 1, "prompt": "a"}', "a gate needs at least 5 texts"),
    ):
        if content is not None:
            prompts.write_text(content)
        assert main(["calibrate", *options, "--prompts", str(prompts), "--max-new-tokens", "4"]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "gate.onnx").exists()


def test_proposals_equal_the_choices_of_the_device(address: str) -> None:
    async def write() -> None:
        async with EdgeClient(config(address, None)) as client:
            alone = await client.generate("the list", mode="edge", max_new_tokens=12)
            request = client.request("the list")
            proposals = await client.proposals(request, alone.token_ids)
            assert tuple(proposal.token_id for proposal in proposals) == alone.token_ids
            committed = [
                event
                async for event in client.stream("the list", mode="edge", max_new_tokens=12)
                if isinstance(event, Committed)
            ]
            assert {event.origin for event in committed} == {Origin.DRAFT}

    asyncio.run(write())
