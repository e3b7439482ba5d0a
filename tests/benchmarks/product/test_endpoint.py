"""The endpoint is compared with the SDK on real processes, by the same texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.kit.prompts import read_prompts
from benchmarks.product.endpoint import PROMPTS, Measured, summarised


def test_a_ratio_is_the_endpoint_over_the_sdk() -> None:
    sdk = Measured("x", tokens=11, first_s=1.0, total_s=2.0)  # 10 tokens/s, 5.5 in all
    slow = Measured("x", tokens=11, first_s=2.0, total_s=4.0)  # 5 tokens/s, 2.75 in all
    summary = summarised([(sdk, slow), (sdk, sdk), (sdk, slow)])
    assert (summary["decode_ratio"], summary["total_ratio"]) == (0.5, 0.5)
    assert (summary["sdk_decode_tokens_per_s"], summary["endpoint_decode_tokens_per_s"]) == (10.0, 5.0)
    assert (summary["sdk_first_ms"], summary["endpoint_first_ms"]) == (1000.0, 2000.0)
    assert (summary["pairs"], summary["same_texts"]) == (3, 3)


def test_the_prompts_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_prompts(PROMPTS)


@pytest.mark.usefixtures("tiny_pair")
def test_both_are_measured_with_the_same_texts(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"id": str(number), "class": "code", "prompt": f"the list of number {number}"} for number in range(5)]
    prompts.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    out = tmp_path / "result.json"
    options = ["--pair", "tiny", "--prompts", str(prompts), "--rounds", "1", "--tokens", "8", "--out", str(out)]
    assert main(["endpoint", *options]) == 0
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["summary"]["pairs"] == result["summary"]["same_texts"] == 5
    assert all(pair["sdk"]["tokens"] == pair["endpoint"]["tokens"] > 0 for pair in result["pairs"])
    assert {"machine", "commit", "date", "settings", "targets"} <= result.keys()


@pytest.mark.usefixtures("tiny_pair")
def test_chats_that_are_kept_would_not_be_read_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["endpoint", "--pair", "tiny", "--count", "4"]) == 1
    assert "count: 4 prompts; give more than 4, the chats that are kept" in capsys.readouterr().err
