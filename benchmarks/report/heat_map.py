"""The regret of `exact` over its whole grid as one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.report.figures import INK

MEASURE = "settled"
LIMIT = 0.97  # cells under it are dotted
_DARKEST = (0.85, 1.5)  # beyond these the colour stays the same

Row = Mapping[str, Any]


def heat_map(rows: Sequence[Row]) -> Figure:
    """Best fixed strategy's time over that of `exact`, from the rows of `python -m benchmarks regret`.

    A panel for each kind of prompt (down) and device speed (across), in it links down and cloud speeds across. White is
    as good as the best, purple better than all, orange a loss; the worst cell of all has a frame and its number.
    """
    categories = sorted({row["category"] for row in rows})
    drafts = sorted({row["draft_ms"] for row in rows})
    links = list(dict.fromkeys(row["link"] for row in rows))
    clouds = sorted({row["cloud_ms"] for row in rows})
    size = (1.8 + 2.1 * len(drafts), 1.4 + (0.6 + 0.2 * len(links)) * len(categories))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    panels = figure.subplots(len(categories), len(drafts), squeeze=False, sharex=True, sharey=True)
    worst = min(rows, key=lambda row: float(row[MEASURE]))
    image = None
    for category, line in zip(categories, panels, strict=True):
        for draft_ms, axes in zip(drafts, line, strict=True):
            mine = [row for row in rows if (row["category"], row["draft_ms"]) == (category, draft_ms)]
            image = _panel(axes, mine, links, clouds, worst)
            axes.set_title(f"{category}, draft {draft_ms:g} ms", fontsize=8, color=INK)
    if image is not None:
        bar = figure.colorbar(image, ax=panels, shrink=0.6, extend="both")
        bar.set_label(f"best fixed strategy's time / that of exact; dots: under {LIMIT}", fontsize=8)
    figure.supxlabel("a token of the cloud [ms]", fontsize=9)
    figure.supylabel("link: round trip [ms], or profile", fontsize=9)
    return figure


def _panel(axes: Axes, rows: Sequence[Row], links: Sequence[str], clouds: Sequence[float], worst: Row) -> Any:
    values = np.full((len(links), len(clouds)), np.nan)
    for row in rows:
        values[links.index(row["link"]), clouds.index(row["cloud_ms"])] = row[MEASURE]
    low, high = _DARKEST
    image = axes.imshow(values, cmap="PuOr", norm=TwoSlopeNorm(1.0, low, high), aspect="auto")
    dots = np.argwhere(values < LIMIT)
    axes.plot(dots[:, 1], dots[:, 0], ".", color=INK, markersize=3)
    if worst in rows:
        x, y = clouds.index(worst["cloud_ms"]), links.index(worst["link"])
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=1.5))
        axes.annotate(f"{worst[MEASURE]:.3f}", (x, y - 0.5), ha="center", va="bottom", fontsize=7, color=INK)
    axes.set_xticks(range(len(clouds)), [f"{cloud:g}" for cloud in clouds], fontsize=7)
    axes.set_yticks(range(len(links)), list(links), fontsize=7)
    return image
