"""Rows of a run made by hand."""

from __future__ import annotations

from typing import Any

from chaperone_common.stats import GenerationStats


def make_row(
    prompt: str,
    strategy: str,
    speed: float | None,
    *,
    category: str = "general",
    repeat: int = 0,
    token_ids: tuple[int, ...] = (1, 2, 3, 4),
    commit_ms: tuple[float, ...] = (10, 20, 30, 40),
    costs: dict[str, float] | None = None,
    readings: tuple[tuple[int, float], ...] = (),
    error: str | None = None,
    **stats: Any,
) -> dict[str, Any]:
    """Return the row of a generation of four tokens; `speed` in tokens a second from a warm start."""
    measured = GenerationStats(completion_tokens=len(token_ids), total_ms=100.0).to_json() | stats
    return {
        "id": prompt,
        "category": category,
        "strategy": strategy,
        "repeat": repeat,
        "decode_tokens_per_s": speed,
        "cold_total_ms": None,
        "token_ids": list(token_ids),
        "commit_ms": list(commit_ms),
        "stats": measured,
        "costs": costs,
        "readings": [list(reading) for reading in readings],
        "link_bytes_up": 40,
        "link_bytes_down": 80,
        "link_cpu_ms": 2.0,
        "error": error,
    }


def make_result(rows: list[dict[str, Any]], summary: dict[str, Any], *, rtt_ms: float = 20.0) -> dict[str, Any]:
    """Return the result of a run with these rows, as far as a report reads it."""
    return {
        "benchmark": "run",
        "machine": {"cpu": "<none>", "cores": 2},
        "commit": "abc",
        "date": "2026-01-01T00:00:00+00:00",
        "settings": {
            "profile": {"description": f"fixed round trip of {rtt_ms:g} ms"},
            "rtt_ms": rtt_ms,
            "temperature": 0.0,
            "cold": False,
            "prompts": ["a"],
            "repeats": 1,
            "max_new_tokens": 4,
            "pair": "tiny",
        },
        "generations": rows,
        "summary": summary,
    }
