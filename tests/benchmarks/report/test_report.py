"""The report: one file of valid HTML that loads no other file, and figures as files."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from benchmarks.__main__ import main
from benchmarks.measured.summary import summarise
from benchmarks.report.figures import FIGURES
from benchmarks.report.report import cell, load_result, write_report
from benchmarks.report.speed_figures import gated_map, heat_map, speed_figure
from chaperone_common.errors import ConfigError
from tests.support.benchmarks.rows import make_result, make_row

VOID = {"meta", "img", "br"}
PNG = b"\x89PNG\r\n\x1a\n"


class Reader(HTMLParser):
    """Checks that elements are closed in order; collects the page's references and cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        assert tag not in ("script", "link", "iframe", "object")
        if tag == "img":
            assert dict(attrs)["alt"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "li"):
            self.texts.append(data)


def results(rtt_ms: float) -> dict[str, Any]:
    rows = [make_row(prompt, name, speed) for prompt in "ab" for name, speed in (("cloud", 2.0), ("sync-8", 6.0))]
    rows.append(make_row("a", "assisted", 3.0, energy_j=None, cloud_compute_ms=None, ttft_ms=None))
    summary = summarise(rows, {"sync-8"})
    bound = {"tokens_per_s": 8.0, "over_cloud": 4.0, "share_reached": {}}
    summary["bounds"] = {"categories": {"all": {"clairvoyant": bound, "physical_floor": bound}}}
    return make_result(rows, summary, rtt_ms=rtt_ms)


def test_the_page_loads_no_other_file(tmp_path: Path) -> None:
    write_report([results(20.0), results(100.0)], tmp_path)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    page = Reader()
    page.feed(text)
    page.close()
    assert page.open == []
    assert len(page.references) == 2 * len(FIGURES), "of the category and of all"
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert not re.search(r"https?:|url\(|@import|//\w", re.sub(r"base64,[^\"]*", "", text))
    assert "3" in page.texts, "sync-8 is three times as fast as cloud"
    assert any("<none>, 2 cores" in text for text in page.texts), "markup in a value is text"


def cell_of_a_grid(category: str, link: str, settled: float) -> dict[str, object]:
    return {"link": link, "cloud_ms": 10.0, "draft_ms": 5.0, "category": category, "settled": settled}


def row_of_virtual_time(rtt_ms: float) -> dict[str, object]:
    speeds = {"cloud": 1.0, "exact": 5.0, "sync": 3.0}
    strategies = {key: {"strategy": key, "over_cloud": value} for key, value in speeds.items()}
    bound = {"over_cloud": 6.0}
    row = {"temperature": 0.0, "rtt_ms": rtt_ms, "category": "general"}
    return row | {"strategies": strategies, "bound": bound}


GRID = [cell_of_a_grid("general", "20", 1.1), cell_of_a_grid("general", "4g", 0.9)]
BY_RTT = [row_of_virtual_time(0.0), row_of_virtual_time(100.0)]


def test_the_same_results_give_the_same_files(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        overview = {"speed": speed_figure(BY_RTT, [results(20.0)]), "regret": heat_map(GRID)}
        write_report([results(20.0)], tmp_path / folder, overview)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {"speed.png", "regret.png", "index.html"}
    for name in names:
        content = (tmp_path / "one" / name).read_bytes()
        assert content.startswith(PNG) == name.endswith(".png")
        assert content == (tmp_path / "two" / name).read_bytes()


def test_the_worst_cell_of_the_grid_is_framed_and_those_under_the_limit_dotted() -> None:
    (panel,) = (axes for axes in heat_map(GRID).axes if axes.get_title())
    assert [text.get_text() for text in panel.texts] == ["0.900"]
    (frame,) = panel.patches
    assert isinstance(frame, Rectangle)
    assert frame.get_xy() == (-0.5, 0.5), "the second link"
    (dots,) = panel.lines
    assert np.asarray(dots.get_xydata()).tolist() == [[0, 1]]


def test_the_cells_where_gated_is_slower_than_exact_are_dotted() -> None:
    ratios = ({"whole": 0.975, "settled": 1.2}, {"whole": 1.3, "settled": 0.5})
    grid = [cell | {"gated_over_exact": ratio} for cell, ratio in zip(GRID, ratios, strict=True)]
    (panel,) = (axes for axes in gated_map(grid).axes if axes.get_title())
    assert [text.get_text() for text in panel.texts] == ["0.975"]
    (dots,) = panel.lines
    assert np.asarray(dots.get_xydata()).tolist() == [[0, 0]]


def test_measured_points_are_drawn_if_comparable_with_the_lines() -> None:
    def points(result: dict[str, Any]) -> int:
        return sum(len(axes.containers) for axes in speed_figure(BY_RTT, [result]).axes)

    assert points(results(20.0)) == 1, "of sync-8; cloud is the baseline of the others"
    assert points(changed(results(20.0), cold=True)) == 0
    assert points(changed(results(20.0), temperature=0.7)) == 0
    assert points(changed(results(20.0), profile={"description": "slow", "up": {"rate_kbit_s": 50}})) == 0


def changed(result: dict[str, Any], **settings: object) -> dict[str, Any]:
    return result | {"settings": result["settings"] | settings}


def test_the_command_writes_to_the_given_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(results(20.0)), encoding="utf-8")
    regret, virtual = tmp_path / "regret.json", tmp_path / "virtual.json"
    regret.write_text(json.dumps({"benchmark": "regret", "rows": GRID}), encoding="utf-8")
    virtual.write_text(json.dumps({"benchmark": "virtual", "rows": BY_RTT}), encoding="utf-8")
    further = ["--regret", str(regret), "--virtual", str(virtual)]
    assert main(["report", str(path), *further, "--out", str(tmp_path / "page")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page" / "index.html")
    assert not (tmp_path / "page" / "gated.png").exists()
    grid = tmp_path / "gated.json"
    rows = [row | {"gated_over_exact": {"whole": 1.1, "settled": 1.1}} for row in GRID]
    grid.write_text(json.dumps({"benchmark": "regret", "rows": rows}), encoding="utf-8")
    assert main(["report", str(path), "--gated", str(grid), "--out", str(tmp_path / "page")]) == 0
    assert (tmp_path / "page" / "gated.png").read_bytes().startswith(PNG)
    capsys.readouterr()
    assert main(["report", str(path), "--regret", str(virtual), "--out", str(tmp_path / "page")]) == 1
    assert "not a result of `python -m benchmarks regret`" in capsys.readouterr().err
    assert main(["report", str(path)]) == 1
    assert "--out: missing" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"benchmark": "run"}', '{"benchmark": "decode"}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="python -m benchmarks run"):
        load_result(path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.12345, "0.123"),
        (1234.5, "1234"),
        (7, "7"),
        ([1.5, 2.5], "1.5 to 2.5"),
        ({"equal": 3, "of": 4}, "3 of 4"),
        ({"p50": 1.0, "p95": None}, "1 / -"),
    ],
)
def test_cells(value: object, text: str) -> None:
    assert cell(value) == text
