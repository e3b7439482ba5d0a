"""The ceiling on the cloud's share: the flag, its messages, and the JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.types import FinishReason, Origin
from edge_client import (
    CloudSettings,
    CloudShareExceeded,
    EdgeConfig,
    GateSettings,
    Generation,
    GenerationStats,
    SyncEdgeClient,
)
from edge_client.apps.cli.generate import cut_of, summary
from edge_client.apps.cli.main import main
from tests.support.fakes.target import fake_target
from tests.support.processes.servers import serving_in_thread

PROMPT = "the list of a number is"
TOKENS = 60
WARNING = "chaperone: warning: max_cloud_share: the cloud chose 6 tokens, and 0.2 of 32 tokens allows no more"


@pytest.fixture(scope="module")
def address(tiny_pair: Path) -> Iterator[str]:
    """Return the address of a cloud that agrees with nothing the device drafts."""
    with serving_in_thread(fake_target(tiny_pair), tiny_pair) as (_, address):
        yield address


def generate(address: str, *arguments: str) -> int:
    given = ["--mode", "gated", "--max-cloud-share", "0.2", "--max-new-tokens", str(TOKENS), *arguments]
    return main(["generate", "--pair", "tiny", "--cloud", address, *given])


def test_the_json_and_one_warning_report_the_ceiling(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(address, "--json", PROMPT) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    stats = result["stats"]
    assert len(result["token_ids"]) == TOKENS
    assert 0.1 < stats["cloud_share"] <= 0.2
    assert (stats["max_cloud_share"], stats["guard"], stats["promises_hold"]) == (0.2, "max_cloud_share", False)
    assert result["origins"].count("unverified") == stats["unverified_tokens"] > 0
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(WARNING)


def test_the_summary_says_that_the_promises_do_not_hold() -> None:
    stats = GenerationStats(
        guard="max_cloud_share", max_cloud_share=0.2, cloud_share=0.194, unverified_tokens=7, promises_hold=False
    )
    assert summary(stats)[1:] == [
        "[max_cloud_share 0.2 was reached: the cloud's share is 0.19, 7 tokens are unverified, and the promises do not "
        "hold]"
    ]
    assert len(summary(GenerationStats())) == 1


def test_the_summary_says_why_a_text_was_cut_and_counts_in_words() -> None:
    stats = GenerationStats(completion_tokens=1, round_trips=1, overridden_tokens=1, total_ms=1000.0)
    assert summary(stats) == ["[1 token, 1.0 tokens/s, 1 round trip waited for, 0 hidden, 1 override]"]
    text = Generation((), (5, 6), "ab", (Origin.DRAFT,) * 2, FinishReason.LENGTH, stats)
    assert cut_of(text, 2) == "cut at 2 tokens (--max-new-tokens)"
    assert cut_of(text, 3) == "cut at 2 tokens (the context is full)"
    assert cut_of(replace(text, finish_reason=FinishReason.STOP), 2) == ""
    assert summary(stats, cut_of(text, 2))[0].endswith(", 1 override; cut at 2 tokens (--max-new-tokens)]")


def test_the_lines_of_a_batch_have_ceilings(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[dict[str, Any]] = [
        {},
        {"max_cloud_share": 1.0},
        {"mode": "cloud"},
        {"mode": "cloud", "max_cloud_share": 0.5},
    ]
    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text(
        "".join(json.dumps({"id": at, "prompt": PROMPT, **line}) + "\n" for at, line in enumerate(lines))
    )
    assert generate(address, "--prompts", str(prompts), "--out", str(out)) == 1
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [result["stats"]["guard"] for result in results[:3]] == ["max_cloud_share", None, None]
    assert [result["stats"]["max_cloud_share"] for result in results[:3]] == [0.2, None, None]
    assert results[2]["stats"]["cloud_share"] == 1.0
    message = (
        "line 4: max_cloud_share: mode is cloud, and only gated keeps this ceiling; ask for gated, or leave it out"
    )
    assert results[3]["error"]["message"] == message
    errors = capsys.readouterr().err
    assert errors.count("the promises do not hold") == 1
    assert "line 1: max_cloud_share: the cloud chose" in errors


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--max-cloud-share", "0"], "--max-cloud-share: 0.0 is outside (0, 1]; use 1 to switch it off"),
        (["--mode", "exact"], "--max-cloud-share: mode is exact, and only gated keeps this ceiling"),
    ],
)
def test_a_ceiling_that_cannot_be_kept_is_refused(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("127.0.0.1:1", *arguments, PROMPT) == 2
    assert complaint in capsys.readouterr().err


def test_a_text_that_fails_at_the_ceiling_is_resumed_by_a_higher_one(address: str, tiny_pair: Path) -> None:
    config = EdgeConfig(
        pair="tiny",
        cloud=CloudSettings(address=address),
        gate=GateSettings(max_cloud_share=0.2, on_cloud_share="fail"),
    )
    with SyncEdgeClient(config) as client:
        whole = client.generate(PROMPT, mode="gated", max_cloud_share=1.0, catch=1.0, max_new_tokens=TOKENS)
        with pytest.raises(CloudShareExceeded) as failed:
            client.generate(PROMPT, mode="gated", catch=1.0, max_new_tokens=TOKENS)
        partial = failed.value.partial
        assert partial is not None
        assert partial.cloud_tokens == 6
        with pytest.raises(CloudShareExceeded):
            client.generate(partial)
        rest = client.generate(partial, max_cloud_share=1.0)
        alone = client.generate(partial, mode="edge")
    assert (*partial.token_ids, *rest.token_ids) == whole.token_ids
    assert rest.stats.cloud_share == whole.stats.cloud_share
    assert alone.stats.cloud_share == 6 / TOKENS
