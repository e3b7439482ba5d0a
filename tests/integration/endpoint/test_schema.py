"""Requests made from the endpoint's own OpenAPI description get the answers that it describes, and never a 5xx."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urljoin

from cloud_supervisor.model.torch_model import TorchModel
from edge_client.config import GenerationSettings
from tests.support.processes.endpoints import endpoint
from tests.support.processes.programs import run_module

EXAMPLES = 10  # of each path, next to one for each value at a limit
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_the_description_is_kept(tiny_pair: Path, target: TorchModel, tmp_path: Path) -> None:
    async def test() -> None:
        short = GenerationSettings(max_new_tokens=2)  # of requests that name no limit
        async with endpoint(target, tiny_pair, generation=short) as served:
            ended = await run_module(
                *("schemathesis.cli", "run", urljoin(served.url, "/openapi.json")),
                *("--url", urljoin(served.url, "/"), "--checks", CHECKS, "--phases", "coverage,fuzzing"),
                *("--max-examples", str(EXAMPLES), "--seed", "1", "--generation-deterministic"),
                *("--request-timeout", "30", "--no-color"),
                folder=tmp_path,
            )
            assert ended.code == 0, ended.out + ended.err
            assert served.server.cloud.supervisor.counters.streams > 20, "many requests reach the models"

    asyncio.run(asyncio.wait_for(test(), 170))
