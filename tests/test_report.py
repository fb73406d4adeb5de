"""Charts, pictures and the page: well formed, self-contained, escaped, honest when undefined."""

from __future__ import annotations

import base64
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report_parts import FACTS, NASTY, class_result, image, page, pixels

from mambaadv2.errors import Problem
from mambaadv2.report import Facts, GalleryPicker, line_chart
from mambaadv2.report.axes import nice_ticks
from mambaadv2.report.charts import rate_chart
from mambaadv2.report.gallery import EXAMPLES, LARGEST, WORST, make_figure
from mambaadv2.report.histogram import MOST_RATIO, score_chart
from mambaadv2.report.shares import share
from mambaadv2.results import Evaluation

SVG = "{http://www.w3.org/2000/svg}"

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


def rectangles(svg: str, kind: str) -> list[ET.Element]:
    return [e for e in ET.fromstring(svg).iter(f"{SVG}rect") if e.get("class") == kind]


ratios = st.lists(st.floats(0, 100), max_size=30)


@given(ratios, ratios, ratios)
def test_the_histogram_counts_every_image_on_its_side_of_the_threshold(
    good: list[float], defect: list[float], held_out: list[float]
) -> None:
    svg = score_chart(good, defect, held_out, title="t")
    middle = float(re.findall(r'class="mark" d="M([\d.]+) ', svg)[0])
    for kind, values in (("f0", good), ("f1", defect)):
        bars = rectangles(svg, kind)
        heights = [float(bar.get("height") or 0) for bar in bars]
        # The tallest bar fills its panel, so the heights give the counts back.
        counts = [round(h / max(heights) * most(svg, kind == "f1")) for h in heights]
        assert sum(counts) == len(values)
        over = sum(
            count
            for bar, count in zip(bars, counts, strict=True)
            if float(bar.get("x") or 0) >= middle - 0.01
        )
        assert over == sum(value > 1 + 1e-9 for value in values)
        for bar in bars:
            left, width = float(bar.get("x") or 0), float(bar.get("width") or 0)
            assert left >= middle - 0.01 or left + width <= middle + 0.01
            assert 64 <= left <= left + width <= 451
    assert svg.count('class="axis"') == len(held_out)


def most(svg: str, second: bool) -> int:
    """The largest count of a panel, as its axis says."""
    numbers = [e.text for e in ET.fromstring(svg).iter(f"{SVG}text") if e.get("x") == "56"]
    return int(numbers[3 if second else 1] or 0)


def test_bars_on_the_wrong_side_are_solid() -> None:
    svg = score_chart([0.5, 1.2], [0.7, 1.5], [0.6], title="t")
    for kind, wrong in (("f0", 1), ("f1", 0)):
        opacity = [bar.get("fill-opacity") for bar in rectangles(svg, kind)]
        assert opacity[wrong] == "1"
        assert opacity[1 - wrong] == "0.45"


def test_scores_far_above_are_in_the_last_bin_and_said() -> None:
    svg = score_chart([0.5], [2.0, MOST_RATIO + 1, 900.0], [], title="t")
    assert "defect: 3, 2 above 4" in labels(svg)
    assert "good: 1" in labels(svg)


def test_the_ring_is_where_the_model_works() -> None:
    svg = rate_chart(
        {"image": [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)]},
        title=NASTY,
        x_label="x",
        y_label="y",
        mark=(0.5, 0.25),
        mark_name=NASTY,
    )
    ring, legend = ET.fromstring(svg).iter(f"{SVG}circle")
    line = next(ET.fromstring(svg).iter(f"{SVG}polyline")).get("points") or ""
    (left, bottom), (_, top), (right, _) = (map(float, p.split(",")) for p in line.split())
    assert float(ring.get("cx") or 0) == pytest.approx((left + right) / 2, abs=0.1)
    assert float(ring.get("cy") or 0) == pytest.approx(bottom + (top - bottom) / 4, abs=0.1)
    assert float(legend.get("cy") or 0) < top, "the legend is above the plot"
    assert "<script" not in svg
    without = rate_chart({}, title="t", x_label="x", y_label="y", mark=None, mark_name="m")
    assert "<circle" not in without


def test_a_share_never_looks_better_than_it_is() -> None:
    assert [share(0, 9), share(9, 9), share(9999, 10000), share(1, 100000), share(1, 3)] == [
        *["0 %", "100 %", "99.9 %", "0.1 %", "33.3 %"]
    ]


def test_pictures_are_small_and_show_what_they_should() -> None:
    rgb = np.full((400, 800, 3), 99, np.uint8)
    values = np.zeros((400, 800), np.float32)
    values[:, 400:] = 0.06  # three times the threshold
    mask = np.zeros((400, 800), bool)
    mask[200, 100] = True  # a single pixel must survive the shrinking
    figure = make_figure(image(), rgb, values, mask, (0.5, 2.0))
    assert figure.outline is not None
    for content in (figure.picture, figure.map, figure.overlay, figure.outline):
        assert pixels(content).shape == (LARGEST // 2, LARGEST, 3)
    heat = pixels(figure.map).astype(int)
    assert heat[:, :140].max() < 20
    assert heat[:, 180:, 0].min() > 230
    over = pixels(figure.overlay).astype(int)
    assert abs(over[:, :140] - 99).max() < 12, "nothing is drawn below the range"
    assert over[:, 180:, 0].min() > 150
    marked = pixels(figure.outline).astype(int)
    assert marked[..., 1].max() > 160
    assert np.unravel_index(marked[..., 1].argmax(), marked.shape[:2]) == pytest.approx(
        (80, 40), abs=3
    )
    assert make_figure(image(), rgb, values, None, (0.5, 2.0)).outline is None


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 8)), max_size=25))
def test_the_gallery_is_what_a_sort_of_all_images_gives(cases: list[tuple[bool, int]]) -> None:
    rgb, values = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.float32)
    picker = GalleryPicker((0.5, 2.0))
    every = []
    for number, (defect, score) in enumerate(cases):
        one = image(f"{number}", kind="cut" if defect else "good", score=float(score))
        every.append(one)
        picker.add(one, rgb, values, None)
    gallery = picker.gallery()
    misses = sorted((i for i in every if i.defect), key=lambda i: i.ratio)
    alarms = sorted((i for i in every if not i.defect), key=lambda i: -i.ratio)
    assert [f.image for f in gallery.misses] == misses[:WORST]
    assert [f.image for f in gallery.alarms] == alarms[:WORST]
    rest = [i for i in every if i not in misses[:WORST] + alarms[:WORST]]
    assert [f.image for f in gallery.examples] == [
        *[i for i in rest if not i.defect][:EXAMPLES],
        *[i for i in rest if i.defect][:EXAMPLES],
    ]


def test_the_page_is_complete_and_loads_nothing() -> None:
    found = page(Evaluation(classes={"nut": class_result()}, seconds=75.2))
    assert found.open == []
    assert not {"script", "link", "iframe", "object", "form"} & set(found.tags)
    pictures = [link for link in found.links if link.startswith("data:image/webp;base64,")]
    assert set(found.links) - set(pictures) == {"#class-1"}
    assert len(pictures) == 2 * 4 + 2 * 3 + 1 + 4
    assert 'id="class-1"' in found.html
    assert not re.search(r"url\(|@import", found.html)
    addresses = re.findall(r"https?://[^\"' <]+", found.html)
    assert set(addresses) == {"http://www.w3.org/2000/svg"}, "a name, not an address to load"
    assert found.tags.count("svg") == 5 + 1
    for words in (
        *["Evaluation of run", "2026-01-02 03:04 UTC", "Misses most: nut cut: 1 of 2 missed"],
        *["False alarms: nut : 1 of 2 flagged", "from 2 held-out good images", "ab12"],
        *[
            "Worst misses, of 1",
            "Worst false alarms, of 1",
            "mambaadv2 evaluate run data --report page.html",
        ],
        *["50.0 % of defects found", "50.0 % of good images flagged"],
    ):
        assert words in found.text, words
    for link in pictures:
        pixels(base64.b64decode(link.partition(",")[2]))


def test_verdicts_and_the_order_of_the_worst() -> None:
    found = page(Evaluation(classes={"nut": class_result()}, seconds=1))
    verdicts = re.findall(r"<figcaption><span class=(\w+)>([a-z ]+)</span>", found.html)
    assert verdicts == [
        *[("wrong", "missed"), ("right", "found")],
        *[("wrong", "false alarm"), ("right", "passed")],
    ]
    assert re.findall(r"([\d.]+) × threshold</strong>", found.html) == [
        *["0.60", "2.50", "1.50", "0.50"]
    ]


def test_undefined_metrics_are_a_dash_and_their_charts_are_left_out() -> None:
    result = class_result(pixel_aupro=None, mad=None, image_auroc=0.98765)
    result = replace(result, pixel_curves=None, image_curves=None, gallery=None)
    found = page(Evaluation(classes={"nut": result}, seconds=1), replace(FACTS, loss=()))
    cells = re.findall(r"<td>([^<]*)(?:<small>[^<]*</small>)?</td>", found.html)
    assert cells[:11] == ["1 / 2", "1 / 2", "98.8", *["50.0"] * 5, "–", "50.0", "–"]
    titles = re.findall(r"<title>([^<]*)</title>", found.html)[1:]
    assert titles == ["Scores", "Calibration of p-values", "Recall by size of the defect"]


def test_a_class_that_the_model_does_not_know() -> None:
    found = page(Evaluation(classes={"bolt": class_result(name="bolt")}, seconds=1))
    assert "not trained on this class" in found.text
    assert "4 of 4 images were taken for another class" in found.text


def test_nothing_wrong_is_said_as_such() -> None:
    result = class_result()
    right = tuple(replace(one, flagged=one.defect) for one in result.images)
    found = page(Evaluation(classes={"nut": replace(result, images=right)}, seconds=1))
    for words in ("no image of this test was judged wrong", "No misses: ", "No false alarms: "):
        assert words in found.text


def test_files_left_out_are_all_named() -> None:
    skipped = tuple(Problem(Path(f"{n}.png"), f"{n}.png: {NASTY}") for n in range(30))
    found = page(Evaluation(classes={"nut": class_result()}, seconds=1, skipped=skipped))
    assert "Left out: 30" in found.text
    assert all(f"{n}.png: {NASTY}" in found.text for n in range(30))


def test_all_texts_are_escaped() -> None:
    result = replace(class_result(kind=NASTY, name=NASTY), notes=(NASTY,))
    facts = Facts(
        title=NASTY,
        command=NASTY,
        time=NASTY,
        tables={NASTY: {NASTY: NASTY}},
        thresholds={NASTY: 1.0},
    )
    found = page(Evaluation(classes={NASTY: result}, seconds=1), facts)
    assert "script" not in found.tags
    assert found.text.count("alert(") >= 12
    assert found.open == []


def test_a_metric_out_of_range_is_refused() -> None:
    for bad in (1.5, math.nan):
        with pytest.raises(ValueError, match=r"expected a metric in 0\.\.1 or None"):
            page(Evaluation(classes={"nut": class_result(mad=bad)}, seconds=1))
