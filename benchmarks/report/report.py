"""Figures and a page of the results of `run`: `python -m benchmarks report R.json ... --out FOLDER`.

The folder gets `index.html`, one file with all figures in it, which loads nothing and can be sent as it is. It also
gets figures as PNG files: speed over the round trip (`--virtual`), the regret of `exact` (`--regret`), and the speed
of `gated` over that of `exact` (`--gated`).
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from benchmarks.report.figures import FIGURES, Result, entries, label_of
from benchmarks.report.speed_figures import gated_map, heat_map, speed_figure
from chaperone_common.errors import ConfigError

COLUMNS = {
    "tokens_per_s": "tokens/s",
    "over_cloud": "over cloud",
    "over_cloud_95": "95% interval",
    "ttft_ms": "first token [ms]",
    "ttft_committed_ms": "first final token [ms]",
    "gap_ms": "gap p50 / p95 / p99 [ms]",
    "round_trips_per_100_tokens": "round trips per 100 tokens",
    "hidden_round_trips_per_100_tokens": "hidden ones",
    "bytes_up_per_token": "payload up [B/token]",
    "bytes_down_per_token": "payload down [B/token]",
    "cloud_ms_per_token": "cloud [ms/token]",
    "joules_per_token": "energy [J/token]",
    "deviations_per_100_tokens": "deviations per 100 tokens",
    "equal_cloud": "equal to cloud",
    "failed": "failed",
}
_DPI, _TINTS = 110, 128
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 75rem; margin: 2rem auto;
  padding: 0 1rem }
table { border-collapse: collapse; font-size: 0.8rem; margin: 0.5rem 0 2rem }
th, td { border-bottom: 1px solid #ccc; padding: 0.25rem 0.5rem; text-align: right; vertical-align: bottom }
th:first-child, td:first-child { text-align: left }
caption { text-align: left; font-weight: bold; padding: 0.5rem 0 }
img { max-width: 100%; display: block; margin: 1rem 0 }
.wide { overflow-x: auto }
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, nargs="+", help="results of `python -m benchmarks run`")
    parser.add_argument("--virtual", type=Path, help="a result of `python -m benchmarks virtual`, for one more figure")
    parser.add_argument("--regret", type=Path, help="a result of `python -m benchmarks regret`, for one more figure")
    parser.add_argument("--gated", type=Path, help="such a result with `gated`, for its speed over that of `exact`")


def run(args: argparse.Namespace) -> None:
    """Write the folder of --out."""
    if args.out is None:
        raise ConfigError("--out: missing; name the folder for the figures and the page")
    results = [load_result(path) for path in args.results]
    overview = {}
    if args.virtual is not None:
        overview["speed"] = speed_figure(_rows(args.virtual, "virtual"), results)
    if args.regret is not None:
        overview["regret"] = heat_map(_rows(args.regret, "regret"))
    if args.gated is not None:
        overview["gated"] = gated_map(_rows(args.gated, "regret"))
    write_report(results, args.out, overview)
    print(f"{args.out / 'index.html'}")


def load_result(path: Path) -> Result:
    """Read a result of `run`; raise ConfigError for any other file."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["benchmark"] != "run":
            raise ConfigError(f"{path}: a result of {result['benchmark']!r}; give one of `python -m benchmarks run`")
        label_of(result)
        entries(result, "all")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a result of `python -m benchmarks run` ({error!r})") from None
    return dict(result)


def _rows(path: Path, benchmark: str) -> list[dict[str, Any]]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["benchmark"] == benchmark and result["rows"]:
            return list(result["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # the error below covers every cause
    raise ConfigError(f"{path}: not a result of `python -m benchmarks {benchmark}`; make it first")


def write_report(results: Sequence[Result], folder: Path, overview: Mapping[str, Figure] | None = None) -> None:
    """Draw everything, the figures over all runs first; files of the same names are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = []
    for name, figure in (overview or {}).items():
        image = png(figure)
        (folder / f"{name}.png").write_bytes(image)
        figures.append((name, f"{name} of the whole; numbers in its own result", image))
    figures += _figures(results)
    (folder / "index.html").write_text(page(results, figures), encoding="utf-8")


def png(figure: Figure) -> bytes:
    """Return a small image: the same numbers give the same bytes with any version of the library."""
    drawn, image = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_DPI, metadata={"Software": None})
    Image.open(drawn).convert("RGB").quantize(_TINTS).save(image, format="png", optimize=True)
    return image.getvalue()


def page(results: Sequence[Result], figures: Sequence[tuple[str, str, bytes]]) -> str:
    """Return the page with its figures (name, caption, PNG) inside."""
    images = "\n".join(
        f'<img alt="{html.escape(title)}" src="data:image/png;base64,{base64.b64encode(image).decode()}">'
        for _, title, image in figures
    )
    tables = "\n".join(_table(result, category) for result in results for category in result["summary"]["categories"])
    sources = "\n".join(f"<li>{html.escape(_source(result))}</li>" for result in results)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n<title>Chaperone: strategies compared</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>Strategies compared</h1>\n<ul>\n{sources}\n</ul>\n"
        f"<h2>Figures</h2>\n{images}\n<h2>Numbers</h2>\n{tables}\n</body>\n</html>\n"
    )


def _figures(results: Sequence[Result]) -> Iterator[tuple[str, str, bytes]]:
    """Yield the name, the caption and the PNG of each figure."""
    categories = dict.fromkeys(category for result in results for category in result["summary"]["categories"])
    for category in categories:
        for name, draw in FIGURES.items():
            yield (
                f"{name}-{category}",
                f"{name.replace('-', ' ')}, {category}; numbers below",
                png(draw(results, category)),
            )


def _table(result: Result, category: str) -> str:
    heads = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in ("strategy", *COLUMNS.values()))
    rows = "\n".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td>{html.escape(cell(entry.get(column)))}</td>" for column in COLUMNS)
        + "</tr>"
        for name, entry in entries(result, category).items()
    )
    caption = html.escape(f"{category}: {label_of(result)}{_bounds(result, category)}{_regret(result, category)}")
    return (
        f'<div class="wide"><table><caption>{caption}</caption>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def cell(value: Any) -> str:
    """Return one value as text."""
    match value:
        case None:
            return "-"
        case {"equal": equal, "of": of}:
            return f"{equal} of {of}"
        case dict():
            return " / ".join(cell(part) for part in value.values())
        case list():
            return " to ".join(cell(part) for part in value)
        case float():
            return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
        case _:
            return str(value)


def _bounds(result: Result, category: str) -> str:
    bounds = result["summary"].get("bounds", {}).get("categories", {}).get(category)
    if not bounds:
        return ""
    return "".join(
        f"; {name.replace('_', ' ')} {cell(bound['over_cloud'])} over cloud" for name, bound in bounds.items()
    )


def _regret(result: Result, category: str) -> str:
    found = ((result["summary"].get("regret") or {}).get("categories") or {}).get(category)
    if not found:
        return ""
    within = f" ({cell(found['ratio_95'])})" if found["ratio_95"] else ""
    return f"; median time of {found['best']} {cell(found['ratio'])} of that of exact{within}"


def _source(result: Result) -> str:
    machine, settings = result["machine"], result["settings"]
    return (
        f"{label_of(result)}: {len(settings['prompts'])} prompts, {settings['repeats']} repeats, up to "
        f"{settings['max_new_tokens']} tokens, pair {settings['pair']}; {machine['cpu']}, {machine['cores']} cores; "
        f"commit {result['commit']}, {result['date']}"
    )
