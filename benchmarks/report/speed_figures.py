"""Figures over all runs: speed against the round trip, and regret over its grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.measured.summary import BASELINE
from benchmarks.report.figures import COLOURS, INK, MARKERS, Result, entries, tidy

BOUND = "bound"
LIMIT, GATED_LIMIT = 0.97, 0.98  # cells under these have a dot
_DARKEST = (0.85, 1.5)  # beyond these the colour stays the same
_APART_MS = 5.0  # between points of two strategies, which would else overlap

Row = Mapping[str, Any]


def speed_figure(rows: Sequence[Row], results: Sequence[Result], temperature: float = 0.0) -> Figure:
    """Return a panel for each kind of prompt: lines from virtual time, points with intervals from warm runs.

    `rows` are those of `python -m benchmarks virtual`, `results` of `python -m benchmarks run` over plain links.
    Published strategies have one line and one kind of point per family, each with its best span length. Strategies
    that do not promise the cloud's text have dotted lines.
    """
    mine = [row for row in rows if row["temperature"] == temperature]
    measured = [result for result in results if _comparable(result["settings"], temperature)]
    categories = list(dict.fromkeys(row["category"] for row in mine))
    families = list(dict.fromkeys(key for row in mine for key in row["strategies"] if key != BASELINE))
    looks = {family: (COLOURS[index], MARKERS[index]) for index, family in enumerate(families)}
    figure = Figure(figsize=(1 + 4 * max(1, len(categories)), 4), layout="constrained", facecolor="white")
    panels = figure.subplots(1, max(1, len(categories)), squeeze=False, sharey=True)[0]
    for axes, category in zip(panels, categories, strict=False):
        _draw_lines(axes, [row for row in mine if row["category"] == category], looks)
        _draw_points(axes, measured, category, looks)
        _frame(axes, category)
    panels[0].set_ylabel("decode speed over cloud streaming")
    panels[-1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(
        f"Lines: virtual time, points: measured (95% over prompts); temperature {temperature:g}", fontsize=9, color=INK
    )
    return figure


def _comparable(settings: Mapping[str, Any], temperature: float) -> bool:
    """Return whether a run is warm and its link is nothing but a round trip."""
    plain = {"delay_ms", "jitter_ms"}
    ways = (settings["profile"].get("up", {}), settings["profile"].get("down", {}))
    return settings["temperature"] == temperature and not settings["cold"] and all(way.keys() <= plain for way in ways)


def _draw_lines(axes: Axes, rows: Sequence[Row], looks: Mapping[str, tuple[str, str]]) -> None:
    ordered = sorted(rows, key=lambda row: float(row["rtt_ms"]))
    x = [row["rtt_ms"] for row in ordered]
    for family, (colour, marker) in looks.items():
        y = [row["strategies"][family]["over_cloud"] for row in ordered]
        exact = all(family not in row.get("inexact_over_exact", ()) for row in ordered)
        axes.plot(x, y, "-" if exact else ":", color=colour, linewidth=2.0 if family == "exact" else 1.2)
        axes.plot([], [], color=colour, marker=marker, label=family)  # for the legend: line and point in one
    axes.plot(x, [row[BOUND]["over_cloud"] for row in ordered], "--", color=INK, label="clairvoyant bound\nof a chain")


def _draw_points(axes: Axes, results: Sequence[Result], category: str, looks: Mapping[str, tuple[str, str]]) -> None:
    for result in results:
        for name, entry in entries(result, category).items():
            family = name.partition("-")[0]
            if family not in looks or entry["over_cloud"] is None:
                continue
            value = entry["over_cloud"]
            low, high = entry["over_cloud_95"] or (value, value)
            colour, marker = looks[family]
            shift = (list(looks).index(family) - (len(looks) - 1) / 2) * _APART_MS
            axes.errorbar(
                [result["settings"]["rtt_ms"] + shift],
                [value],
                yerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
                color=colour,
                marker=marker,
                capsize=3,
                linewidth=1.0,
            )


def _frame(axes: Axes, category: str) -> None:
    axes.axhline(1.0, color="#999999", linewidth=0.8)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.set_xlabel("round trip of the link [ms]")
    axes.set_title(category, fontsize=10, color=INK)
    tidy(axes)


def heat_map(rows: Sequence[Row]) -> Figure:
    """Return the best fixed strategy's time over that of `exact`, from rows of `python -m benchmarks regret`.

    White is as good as the best, purple better than all, orange a loss.
    """
    shown = [_Cell(row, row["settled"]) for row in rows]
    return _grid(shown, f"best fixed strategy's time / that of exact; dots: under {LIMIT}", LIMIT)


def gated_map(rows: Sequence[Row]) -> Figure:
    """Return the time of `exact` over that of `gated`, from rows of `python -m benchmarks regret`.

    White is as fast as `exact`, purple faster, orange slower.
    """
    shown = [_Cell(row, row["gated_over_exact"]["whole"]) for row in rows]
    return _grid(shown, f"time of exact / that of gated; dots: under {GATED_LIMIT}", GATED_LIMIT)


class _Cell(NamedTuple):
    """A cell of the grid for one kind of prompt, and the ratio that is shown there."""

    row: Row
    ratio: float


def _grid(cells: Sequence[_Cell], label: str, limit: float) -> Figure:
    """Return a heat map of ratios.

    There is a panel for each kind of prompt (down) and device speed (across), and in it links (down) and cloud speeds
    (across). Cells under the limit have a dot. The worst cell of all has a frame and its number.
    """
    rows = [cell.row for cell in cells]
    categories = sorted({row["category"] for row in rows})
    drafts = sorted({row["draft_ms"] for row in rows})
    links = list(dict.fromkeys(row["link"] for row in rows))
    clouds = sorted({row["cloud_ms"] for row in rows})
    size = (1.8 + 2.1 * len(drafts), 1.4 + (0.6 + 0.2 * len(links)) * len(categories))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    panels = figure.subplots(len(categories), len(drafts), squeeze=False, sharex=True, sharey=True)
    worst = min(cells, key=lambda cell: cell.ratio)
    image = None
    for category, line in zip(categories, panels, strict=True):
        for draft_ms, axes in zip(drafts, line, strict=True):
            mine = [cell for cell in cells if (cell.row["category"], cell.row["draft_ms"]) == (category, draft_ms)]
            image = _panel(axes, mine, links, clouds, limit)
            if worst in mine:
                _mark(axes, worst, links, clouds)
            axes.set_title(f"{category}, draft {draft_ms:g} ms", fontsize=8, color=INK)
    if image is not None:
        bar = figure.colorbar(image, ax=panels, shrink=0.6, extend="both")
        bar.set_label(label, fontsize=8)
    figure.supxlabel("a token of the cloud [ms]", fontsize=9)
    figure.supylabel("link: round trip [ms], or profile", fontsize=9)
    return figure


def _panel(axes: Axes, cells: Sequence[_Cell], links: Sequence[str], clouds: Sequence[float], limit: float) -> Any:
    values = np.full((len(links), len(clouds)), np.nan)
    for row, ratio in cells:
        values[links.index(row["link"]), clouds.index(row["cloud_ms"])] = ratio
    low, high = _DARKEST
    image = axes.imshow(values, cmap="PuOr", norm=TwoSlopeNorm(1.0, low, high), aspect="auto")
    dots = np.argwhere(values < limit)
    axes.plot(dots[:, 1], dots[:, 0], ".", color=INK, markersize=3)
    axes.set_xticks(range(len(clouds)), [f"{cloud:g}" for cloud in clouds], fontsize=7)
    axes.set_yticks(range(len(links)), list(links), fontsize=7)
    return image


def _mark(axes: Axes, cell: _Cell, links: Sequence[str], clouds: Sequence[float]) -> None:
    """Draw a frame around a cell, and write its number."""
    x, y = clouds.index(cell.row["cloud_ms"]), links.index(cell.row["link"])
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=1.5))
    axes.annotate(f"{cell.ratio:.3f}", (x, y - 0.5), ha="center", va="bottom", fontsize=7, color=INK)
