"""The latencies of a load as a figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

_LINE, _INK = "#0072B2", "#222222"
_MARKED = (50, 95, 99)  # percentiles


def latency_figure(latency_ms: Sequence[float], devices: int) -> Figure:
    """Return the share of verdicts that came within a time, over that time."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="time to the verdict, ms", ylabel="share of verdicts", ylim=(0, 1.02))
    axes.set_title(f"{len(latency_ms)} verdicts of {devices} devices", color=_INK)
    if latency_ms:
        axes.ecdf(latency_ms, color=_LINE)
        axes.set_xscale("log")
        for share in _MARKED:
            at_ms = float(np.percentile(latency_ms, share))
            axes.axvline(at_ms, color=_INK, linewidth=0.6, linestyle=":")
            axes.text(at_ms, 0.02, f" p{share}", color=_INK, fontsize=8, rotation=90)
    axes.grid(alpha=0.3)
    return figure
