"""The chart and the page: well formed, self-contained, escaped, honest about what is undefined."""

from __future__ import annotations

import base64
import io
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mambaadv2.report import (
    METRICS,
    Figure,
    TableRow,
    line_chart,
    nice_ticks,
    write_demo_page,
)

SVG = "{http://www.w3.org/2000/svg}"
NASTY = """<script>alert("1")</script> & 'x'"""

finite = st.floats(-1e12, 1e12).map(lambda x: 0.0 if abs(x) < 1e-12 else x)


@given(finite, finite, st.integers(2, 10))
def test_ticks_are_even_few_and_cover_the_range(a: float, b: float, about: int) -> None:
    low, high = sorted((a, b))
    ticks = nice_ticks(low, high, about)
    step = ticks[1] - ticks[0]
    assert 2 <= len(ticks) <= about + 3
    np.testing.assert_allclose(np.diff(ticks), step, rtol=1e-5)
    assert ticks[0] <= low + 1e-5 * step
    assert ticks[-1] >= high - 1e-5 * step
    assert round(step / 10 ** math.floor(math.log10(step * 1.001)), 3) in (1, 2, 5)


def labels(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


def chart(**series: list[tuple[float, float]]) -> str:
    return line_chart(series, title="Loss", x_label="epoch", y_label="loss")


def test_chart_has_title_axes_and_legend() -> None:
    svg = chart(total=[(0, 1.0), (5, 0.5), (10, 0.25)], deep=[(0, 0.4), (10, 0.1)])
    assert svg.startswith("<svg")
    assert "<script" not in svg
    texts = labels(svg)
    assert {"Loss", "epoch", "loss", "total", "deep", "0", "10", "0.0", "1.0"} <= set(texts)
    lines = list(ET.fromstring(svg).iter(f"{SVG}polyline"))
    assert len(lines) == 4
    assert lines[0].get("stroke") != lines[2].get("stroke")
    first, last = (pair.split(",") for pair in (lines[0].get("points") or "").split()[::2])
    assert float(first[0]) < float(last[0])
    assert float(first[1]) < float(last[1]), "y points down in SVG"


@given(
    st.dictionaries(
        st.text(max_size=8).filter(str.isprintable),
        st.lists(st.tuples(st.floats(width=32), st.floats(width=32)), max_size=8),
        max_size=7,
    )
)
def test_any_numbers_give_well_formed_svg(series: dict[str, list[tuple[float, float]]]) -> None:
    svg = line_chart(series, title="t", x_label="x", y_label="y")
    for line in ET.fromstring(svg).iter(f"{SVG}polyline"):
        for pair in (line.get("points") or "").split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= 720
            assert 0 <= y <= 360


def test_no_data_is_said() -> None:
    for svg in (chart(), chart(a=[]), chart(a=[(0.0, math.nan), (math.inf, 1.0)])):
        assert "no data" in labels(svg)
    assert "no data" not in labels(chart(a=[(0, 0)]))


def test_tick_labels_tell_ticks_apart() -> None:
    for low, high in ((0.0, 1e-9), (1e9, 1.001e9), (0.1, 0.1001), (-3e-7, 4e-7), (0.0, 3e8)):
        texts = [text for text in labels(chart(a=[(0, low), (1, high)])) if text]
        numbers = texts[3:-1]
        assert len(numbers) - len(set(numbers)) <= 2, numbers


def test_many_points_are_thinned_but_spikes_stay() -> None:
    points = [(float(i), 1.0) for i in range(100_000)]
    points[54_321] = (54_321.0, 9.0)
    svg = chart(a=points)
    assert len(svg) < 100_000
    line = next(ET.fromstring(svg).iter(f"{SVG}polyline")).get("points") or ""
    heights = sorted({float(pair.split(",")[1]) for pair in line.split()})
    assert len(heights) == 2


def test_chart_texts_are_escaped() -> None:
    svg = line_chart({NASTY: [(0, 1)]}, title=NASTY, x_label=NASTY, y_label=NASTY)
    assert "<script" not in svg
    assert labels(svg).count(NASTY) == 4


def row(name: str, **changed: float | None) -> TableRow:
    metrics: dict[str, float | None] = {key: 0.5 for key, _, _ in METRICS}
    return TableRow(name=name, metrics=metrics | changed, n_good=3, n_defect=4)


def figure(
    label: str, *, defect: bool, name: str = "nut", threshold: float = 0.02, side: int = 40
) -> Figure:
    mask = np.zeros((side, 2 * side), bool)
    mask[5:9, 5:9] = True
    return Figure(
        class_name=name,
        label=label,
        image=np.full((side, 2 * side, 3), 99, np.uint8),
        map=np.full((side, 2 * side), 0.01, np.float32),
        mask=None if label == "unmarked" else mask,
        score=0.03,
        threshold=threshold,
        defect=defect,
    )


class Page(HTMLParser):
    """Collects what the tests look at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def write(path: Path, rows: list[TableRow], figures: list[Figure], text: str = "demo") -> Page:
    write_demo_page(
        path,
        title=text,
        command=text,
        seconds=75.2,
        table_rows=rows,
        figures=figures,
        loss_svg=chart(a=[(0, 1), (1, 0.5)]),
        colour_range=(0.5, 3.0),
        notes=[text],
    )
    return Page(path)


def test_page_is_complete_and_loads_nothing(tmp_path: Path) -> None:
    figures = [figure("good", defect=False), figure("cut", defect=True, name="wood")]
    page = write(tmp_path / "new" / "page.html", [row("nut"), row("mean")], figures)
    assert page.open == []
    assert page.tags.count("figure") == 2
    assert page.tags.count("svg") == 1
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert len(page.links) == 2 * 3 + 1
    assert not re.search(r"url\(|@import", page.html)
    addresses = re.findall(r"https?://[^\"' <]+", page.html)
    assert set(addresses) == {"http://www.w3.org/2000/svg"}, "a name, not an address to load"
    assert "1 min 15 s" in page.text
    assert "threshold" in page.text
    for link in page.links:
        with Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))) as image:
            assert image.mode == "RGB"


def test_undefined_metrics_are_a_dash(tmp_path: Path) -> None:
    rows = [row("nut", pixel_aupro=None, mad=None, image_auroc=0.98765)]
    page = write(tmp_path / "page.html", rows, [])
    cells = re.findall(r"<td>(.*?)</td>", page.html)
    assert cells == ["3", "4", "98.8", "50.0", "50.0", "50.0", "50.0", "50.0", "–", "–"]


def test_all_texts_are_escaped(tmp_path: Path) -> None:
    page = write(
        tmp_path / "page.html", [row(NASTY)], [figure(NASTY, defect=True, name=NASTY)], NASTY
    )
    assert "script" not in page.tags
    assert page.text.count("alert(") >= 6
    assert page.open == []


def test_verdicts(tmp_path: Path) -> None:
    figures = [
        figure("good", defect=False),
        figure("good", defect=True),
        figure("cut", defect=False),
        figure("unmarked", defect=True),
    ]
    page = write(tmp_path / "page.html", [], figures)
    verdicts = re.findall(r"\((correct|missed|false alarm)\)", page.text)
    assert verdicts == ["correct", "false alarm", "missed", "correct"]
    assert page.text.count("no mask") == 1
    assert page.text.count("1.50 × threshold") == 4


def test_large_images_are_shrunk(tmp_path: Path) -> None:
    page = write(tmp_path / "page.html", [], [figure("cut", defect=True, side=400)])
    sizes = []
    for link in page.links[1:]:
        with Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))) as image:
            sizes.append(image.size)
    assert sizes == [(320, 160)] * 3


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    with pytest.raises(ValueError, match=r"row 'nut' lacks image_ap"):
        write(path, [TableRow(name="nut", metrics={"image_auroc": 1.0})], [])
    for bad in (1.5, math.nan):
        with pytest.raises(ValueError, match=r"expected 0\.\.1 or None"):
            write(path, [row("nut", mad=bad)], [])
    with pytest.raises(ValueError, match="threshold above 0"):
        write(path, [], [figure("cut", defect=True, threshold=0.0)])
    with pytest.raises(ValueError, match="line_chart"):
        write_demo_page(
            path,
            title="",
            command="",
            seconds=0,
            table_rows=[],
            figures=[],
            loss_svg="<script>",
            colour_range=(0, 1),
        )
    assert not path.exists()
