"""Beams by transformers' own `generate`, with the large model alone in a process, without a link."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.kit.processes import ServerFailed
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.artefacts.sources import Origin

_MODULE = "benchmarks.beams.plain_generate"


class PlainGenerate:
    """The running process. It reads a line of JSON for each text, and writes one."""

    def __init__(self, pair: str, dtype: str, cores: Sequence[int]) -> None:
        command = ["-m", _MODULE, "--pair", pair, "--dtype", dtype, "--cores", ",".join(map(str, cores))]
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def generate(self, **asked: Any) -> dict[str, Any]:
        """Return `token_ids` and `seconds` of a text."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ServerFailed(f"the process of `generate` ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def main() -> None:
    """Answer each line of JSON with another one until the input ends."""
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}")
    parser.add_argument("--pair", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--cores", required=True)
    args = parser.parse_args()
    cores = [int(core) for core in args.cores.split(",")]
    os.sched_setaffinity(0, cores)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    from cloud_supervisor.export import conversion

    torch.set_num_threads(len(cores))
    folder = pair_folder(args.pair, "cloud")
    manifest = load_manifest(folder, role="cloud")
    model = conversion.load(Origin(str(folder)), args.dtype, progress=False).model
    padding = list(range(manifest.vocabulary_size, model.config.vocab_size))
    ends = set(manifest.eos_token_ids)
    for line in sys.stdin:
        asked = json.loads(line)
        prompt = torch.tensor([asked["prompt_token_ids"]])
        torch.manual_seed(asked["seed"])
        greedy = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        sampled = {"do_sample": True, "temperature": asked["temperature"], "top_k": 0, "top_p": 1.0}
        began_s = time.perf_counter()
        found = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            num_beams=asked["num_beams"],
            max_new_tokens=asked["max_new_tokens"],
            eos_token_id=[*ends],
            pad_token_id=manifest.eos_token_ids[0],
            suppress_tokens=padding or None,
            repetition_penalty=1.0,
            **(sampled if asked["temperature"] else greedy),
        )
        seconds = time.perf_counter() - began_s
        token_ids = found[0, prompt.shape[1] :].tolist()
        end = next((place + 1 for place, token_id in enumerate(token_ids) if token_id in ends), len(token_ids))
        print(json.dumps({"token_ids": token_ids[:end], "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
