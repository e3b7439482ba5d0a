"""Programs that know OpenAI's API complete their task with the endpoint: llm, aider, and a test of conformance."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from cloud_supervisor.model.torch_model import TorchModel
from tests.support.fakes.scripted import scripted_target
from tests.support.processes.endpoints import endpoint
from tests.support.processes.programs import AIDER, require_aider, run_module, run_program

CHAT = "the list of a number is"
# Of `llm-comply`, with the reason. Everything else must pass.
EXCLUDED = {
    "chat-tool-calling": "tools are refused by name",
    "chat-image-input": "the models read text only, so images are refused by name",
    "chat-reasoning-summary": "skipped by llm-comply itself for models that are not OpenAI's reasoning models",
}
BROKEN = "def add(a, b):\n    return a - b\n"
FIXED = "def add(a, b):\n    return a + b\n"
EDIT = f"The sign is wrong.\n\ncalc.py\n```\n{FIXED}```\n"
QUIET = (  # no question, no colours, no network but the endpoint
    *("--no-git", "--yes-always", "--no-check-update", "--no-show-release-notes", "--analytics-disable"),
    *("--no-show-model-warnings", "--no-pretty", "--no-fancy-input", "--no-detect-urls", "--no-auto-lint"),
    *("--map-tokens", "0"),
)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 170))


def test_llm_writes_the_text_of_the_sdk(tiny_pair: Path, target: TorchModel, tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            expected = (await served.client.generate(CHAT, max_new_tokens=12)).text
            model = f"- model_id: on-device\n  model_name: tiny\n  api_base: {served.url}\n"
            (tmp_path / "extra-openai-models.yaml").write_text(model, encoding="utf-8")

            async def answered(*arguments: str) -> str:
                ended = await run_module(
                    "llm", "prompt", *arguments, "-o", "max_tokens", "12", folder=tmp_path, LLM_USER_PATH=str(tmp_path)
                )
                assert (ended.code, ended.err) == (0, "")
                return ended.out

            assert await answered("-m", "on-device", CHAT) == f"{expected}\n"
            assert await answered("-m", "on-device", "--no-stream", "--no-log", CHAT) == f"{expected}\n"
            chat = [
                {"role": "user", "content": CHAT},
                {"role": "assistant", "content": expected},
                {"role": "user", "content": "return the value"},
            ]
            second = await served.client.generate(chat, max_new_tokens=12)
            assert await answered("--continue", "return the value") == f"{second.text}\n"

    run(test)


def test_llm_comply_passes_with_the_declared_exclusions(tiny_pair: Path, target: TorchModel, tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            ended = await run_module(
                *("llm_comply.cli", "--format", "openai-chat", "--base-url", served.url, "--model", "tiny"),
                *("--api-key", "unused", "--json"),
                folder=tmp_path,
            )
            results = {result["id"]: result for result in json.loads(ended.out)["results"]}
            assert results.keys() > EXCLUDED.keys()
            for name in EXCLUDED:
                assert results.pop(name)["status"] in ("failed", "skipped"), f"{name}: no exclusion is needed"
            assert {name: result["status"] for name, result in results.items()} == dict.fromkeys(results, "passed")
            assert [result["warnings"] for result in results.values() if result.get("warnings")] == []

    run(test)


def test_aider_edits_a_file(tiny_pair: Path, tmp_path: Path) -> None:
    """The large model is played: it answers with an edit. `exact` writes that, whatever the small one drafts."""
    require_aider()
    source = tmp_path / "calc.py"
    source.write_text(BROKEN, encoding="utf-8")

    async def test() -> None:
        async with endpoint(scripted_target(tiny_pair, EDIT), tiny_pair) as served:
            ended = await run_program(
                *(str(AIDER), "--model", "openai/tiny", "--edit-format", "whole", *QUIET),
                *("--message", "Fix the function.", "calc.py"),
                folder=tmp_path,
                OPENAI_API_BASE=served.url,
                OPENAI_API_KEY="unused",
                LITELLM_LOCAL_MODEL_COST_MAP="True",
            )
            assert ended.code == 0, ended
            assert "The sign is wrong." in ended.out
            assert source.read_text(encoding="utf-8") == FIXED, ended

    run(test)
