"""llama.cpp on the same machine and the same model, measured by its own `llama-bench`.

It is built from the source package of llama-cpp-python; docs/benchmarks.md has the commands, and those for weights of
8 bits (Q8_0), so that both engines read the same bytes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.kit.statistics import rounded
from chaperone_common.errors import ConfigError

PATIENCE_S = 900


def measure(program: Path, weights: Path, *, threads: int, held: int, spans: Sequence[int], rounds: int) -> Any:
    """Return the medians of the times in which it reads some tokens of a text of which it holds `held`.

    `tokens_per_s` is its plain streaming. Raises ConfigError if it does not measure.
    """
    command = [str(program), "-m", str(weights), "-t", str(threads), "-d", str(held), "-r", str(rounds)]
    command += ["-p", ",".join(map(str, spans)), "-n", "16", "-o", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
        tests: list[dict[str, Any]] = json.loads(done.stdout)
        ms = {test["n_prompt"]: statistics.median(test["samples_ns"]) / 1e6 for test in tests if not test["n_gen"]}
        [writing] = [test for test in tests if test["n_gen"]]
        return {
            "version": f"{writing['build_number']} ({writing['build_commit']})",
            "weights_mb": round(weights.stat().st_size / 1e6),
            "ms": {f"1x{tokens}": rounded(ms[tokens], 1) for tokens in spans},
            "tokens_per_s": rounded(statistics.median(writing["samples_ts"]), 2),
            "eight_over_one": rounded(ms[8] / ms[1]),
        }
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        raise ConfigError(f"--llama-bench: {program} did not measure {weights}: {error!r}") from None
