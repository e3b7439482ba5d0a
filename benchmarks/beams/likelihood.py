"""Log-likelihood of texts by the large model, read after the measurement: the same measure for all ways."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.kit.processes import ServerFailed
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import SamplingParams

_MODULE = "benchmarks.beams.likelihood"
DTYPE: Final = "bfloat16"


def logprobs(pair: str, texts: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the log-probability of each text's `token_ids` after its `prompt_token_ids`, at temperature 1.

    A process of its own loads the large model, so that this one does not import torch.
    """
    asked = [{name: text[name] for name in ("prompt_token_ids", "token_ids")} for text in texts]
    done = subprocess.run(
        [sys.executable, "-m", _MODULE, "--pair", pair],
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    if done.returncode:
        raise ServerFailed(f"the process that reads the texts ended with exit code {done.returncode}")
    found: list[float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Read texts as JSON, and write their log-probabilities."""
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}")
    parser.add_argument("--pair", required=True)
    args = parser.parse_args()
    import numpy as np
    from scipy.special import logsumexp

    from cloud_supervisor.kv.slots import SlotCache
    from cloud_supervisor.model.ports import ForwardRequest
    from cloud_supervisor.model.torch_model import TorchModel

    folder = pair_folder(args.pair, "cloud")
    manifest = load_manifest(folder, role="cloud")
    model = TorchModel.of_manifest(folder, manifest, dtype=DTYPE, threads=None)
    found = []
    for text in json.load(sys.stdin):
        prompt, tokens = text["prompt_token_ids"], text["token_ids"]
        cache = SlotCache(model.kv_pool)
        rows = model.scores(ForwardRequest(cache, TokenTree((*prompt, *tokens[:-1])), len(tokens), SamplingParams()))
        chosen = rows[np.arange(len(tokens)), tokens]
        found.append(float((chosen - logsumexp(rows, axis=1)).sum()))
        cache.crop(0)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
