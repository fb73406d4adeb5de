"""Intervals, calibration and sizes in the report: each against a count made another way."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from tests.report_parts import FACTS, class_result, image, measured, page

from mambaadv2.metrics import Resampling, auroc
from mambaadv2.report.axes import decades
from mambaadv2.report.calibration import calibration
from mambaadv2.report.expected import Judged, count_range, judged, levels
from mambaadv2.report.expected import _distribution as distribution
from mambaadv2.report.shares import bar, exact_interval, p_text, plural, rate_range
from mambaadv2.report.sizes import size_bins, size_chart, size_table
from mambaadv2.report.table import ORDER
from mambaadv2.results import METRICS, Evaluation, ImageResult

counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_exact_intervals_are_scipys(count: tuple[int, int]) -> None:
    part, whole = count
    peer = binomtest(part, whole).proportion_ci(0.95, method="exact")
    assert exact_interval(part, whole) == pytest.approx((peer.low, peer.high), abs=1e-9)


@pytest.mark.parametrize(("part", "whole"), [(-1, 3), (4, 3), (0, 0)])
def test_impossible_counts_are_refused(part: int, whole: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= part <= whole"):
        exact_interval(part, whole)


def test_numbers_read_as_they_should() -> None:
    assert [p_text(p) for p in (1 / 33, 1.0, 0.1, 0.0002, None)] == [
        *["0.030", "1.0", "0.10", "0.00020", "–"]
    ]
    assert [rate_range(*c) for c in ((0, 30), (30, 30), (3, 9), (0, 0))] == [
        *["0–11.6 %", "88.4–100 %", "7.5–70.1 %", "–"]
    ]
    assert [plural(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert decades(0.0004, -2) == ([-4.0, -3.0, -2.0, -1.0, 0.0], ["0.01 %", *DECADES])
    assert re.findall(r"(?:left|width):([\d.]+)%", bar(3, 9, whiskers=True)) == [
        *["33.3", "7.5", "62.6"]
    ]


DECADES = ["0.1 %", "1 %", "10 %", "100 %"]


def in_every_order(held_out: int, test: int, rank: int) -> dict[int, float]:
    """Chances of 0, 1, ... test images of a p-value <= rank / (held_out + 1), by trying them."""
    tried: Counter[int] = Counter()
    for places in itertools.combinations(range(held_out + test), test):
        held_above = [place - number for number, place in enumerate(places)]
        tried[sum(1 + above <= rank for above in held_above)] += 1
    return {count: times / tried.total() for count, times in tried.items()}


@given(st.integers(1, 7), st.integers(1, 6), st.data())
def test_the_band_is_what_all_orders_give(n: int, m: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, n + 1))
    chances = distribution([Judged(np.ones(m), n)], rank / (n + 1))
    expected = in_every_order(n, m, rank)
    assert chances == pytest.approx([expected.get(count, 0.0) for count in range(m + 1)])
    low, high = count_range([Judged(np.ones(m), n)], rank / (n + 1))
    assert chances[:low].sum() <= 0.025 + 1e-9
    assert chances[high + 1 :].sum() <= 0.025 + 1e-9
    assert chances[: low + 1].sum() > 0.025 - 1e-9, "no narrower band would do"
    assert chances[high:].sum() > 0.025 - 1e-9


def test_counts_of_several_classes_add() -> None:
    groups = [Judged(np.ones(3), 4), Judged(np.ones(2), 2)]
    one, two = (distribution([group], 0.4) for group in groups)
    assert distribution(groups, 0.4) == pytest.approx(np.convolve(one, two))


def test_the_band_holds_the_counts_of_a_simulation() -> None:
    rng = np.random.default_rng(3)
    level, inside, trials = 0.05, 0, 2000
    for _ in range(trials):
        groups = []
        for n, m in ((99, 40), (25, 60)):
            held, test = np.sort(rng.standard_normal(n)), rng.standard_normal(m)
            p_values = (1 + n - np.searchsorted(held, test)) / (n + 1)
            groups.append(Judged(np.sort(p_values), n))
        low, high = count_range(groups, level)
        inside += low <= sum(group.counted(level) for group in groups) <= high
    assert inside / trials > 0.95 - 0.015


def good_images(p_values: list[float], found_class: str = "nut") -> list[ImageResult]:
    return [
        replace(
            image(f"nut/good/{number}.png", kind="good", flagged=False, p_value=p),
            found_class=found_class,
        )
        for number, p in enumerate(p_values)
    ]


def test_only_good_images_with_p_values_of_known_classes_count() -> None:
    images = [*good_images([0.5, 0.2]), image(), image("x", kind="good", p_value=None)]
    images += good_images([0.1], found_class="bolt")
    (group,) = judged(images, {"nut": 9})
    assert group.p_values.tolist() == [0.2, 0.5]
    assert [group.counted(level) for level in (0.1, 0.2, 0.5)] == [0, 1, 2]
    assert len(judged(images, {"nut": 9, "bolt": 4})) == 2


@given(st.lists(st.integers(1, 300), min_size=1, max_size=4), st.integers(2, 60))
def test_levels_are_few_and_reach_from_the_smallest_p_value_to_1(
    held_out: list[int], most: int
) -> None:
    groups = [Judged(np.ones(1), n) for n in held_out]
    found = levels(groups, most)
    assert len(found) <= most
    assert found == sorted(set(found))
    assert found[0] == pytest.approx(1 / (max(held_out) + 1))
    assert found[-1] == 1.0


def test_the_calibration_says_what_can_be_checked() -> None:
    few = calibration(good_images([0.2] * 3), {"nut": 4})
    assert "Too few held-out images to check 5 %:</strong> the class has 4" in few
    assert "With 3 good test images the line moves in steps of 33 %" in few
    assert "p ≤ 20 %: 3 (100 %)" in few
    some = calibration(good_images([0.05] * 30), {"nut": 19})
    assert "Too few held-out images to check 1 %:</strong> the class has 19, 1 % needs 99" in some
    enough = calibration(good_images([k / 100 for k in range(1, 101)]), {"nut": 99})
    assert "Too few" not in enough
    assert "class=wrong" not in enough
    assert "p ≤ 1 %: 1 (1.0 %), within the 0 to" in enough
    assert "No calibration plot: the model gives no p-values" in calibration(good_images([0.1]), {})
    assert "there are no good test images" in calibration([image()], {"nut": 4})


def test_false_alarms_beyond_chance_are_marked() -> None:
    bad = calibration(good_images([0.01] * 50), {"nut": 99})
    assert "<strong class=wrong>p ≤ 1 %: 50 (100 %)</strong>, more than the 0 to" in bad


def test_the_line_of_the_calibration_is_the_share_below() -> None:
    html = calibration(good_images([0.01, 0.1, 0.1, 1.0] * 25), {"nut": 99})
    svg = ET.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    paths = {p.get("class"): p.get("d") or "" for p in reversed(list(svg.iter(f"{SVG}path")))}
    heights = [float(y) for y in re.findall(r"(?:V|M[\d.]+ )([\d.]+)", paths["c0"])]
    bottom, top = heights_of(svg, "1 %"), heights_of(svg, "100 %")
    shares = {10 ** (-2 * (h - top) / (bottom - top)) for h in heights}
    assert sorted(shares) == pytest.approx([0.25, 0.75, 1.0], rel=0.02)


SVG = "{http://www.w3.org/2000/svg}"


def heights_of(svg: ET.Element, label: str) -> float:
    """The pixel of a label of the upright axis."""
    return next(
        float(e.get("y") or 0) - 4
        for e in svg.iter(f"{SVG}text")
        if e.text == label and e.get("text-anchor") == "end"
    )


@given(st.lists(st.tuples(st.integers(1, 10_000), st.booleans()), max_size=40))
def test_every_defect_is_in_one_size(cases: list[tuple[int, bool]]) -> None:
    images = [
        replace(image(str(n), flagged=found), defect_pixels=size, pixels=10_000)
        for n, (size, found) in enumerate(cases)
    ]
    bins = size_bins(images)
    assert sum(one.total for one in bins) == len(cases)
    assert sum(one.found for one in bins) == sum(found for _, found in cases)
    for one in bins:
        inside = [found for size, found in cases if one.low < size / 10_000 <= one.high]
        assert (len(inside), sum(inside)) == (one.total, one.found)
    assert ("<rect" in size_chart(images)) == bool(cases)


def test_defects_without_a_mask_are_said() -> None:
    images = [
        image(),
        replace(image("a"), defect_pixels=None),
        replace(image("b"), defect_pixels=0),
    ]
    table = size_table(images)
    assert "10–30 %" in table
    assert "2 more without a mask or a marked pixel" in table
    assert size_table(images[1:]) == size_chart(images[1:]) == ""


def test_the_table_has_every_metric_with_its_interval_in_the_order_of_the_groups() -> None:
    assert sorted(ORDER) == sorted(METRICS)
    evaluation = Evaluation(
        classes={"nut": measured("nut", 1), "bolt": measured("bolt", 2)},
        seconds=1,
        resampling=Resampling(replicates=200),
    )
    html = page(evaluation).html
    table = html[html.index("<table class=metrics>") : html.index("</table>")]
    rows = table.split("<tr")[3:]
    for row, result in zip(rows, evaluation.classes.values(), strict=False):
        cells = re.findall(r"<td>([^<]*)<small>([^<]*)</small></td>", row)
        assert cells[0] == (
            f"{result.n_flagged} / {result.n_good}",
            rate_range(result.n_flagged, result.n_good),
        )
        for metric, (value, ends) in zip(ORDER, cells[2:], strict=True):
            known, interval = result.metrics[metric], result.interval(metric)
            assert known is not None
            assert interval is not None
            assert value == f"{100 * known:.1f}"
            assert ends == f"{100 * interval.low:.1f}–{100 * interval.high:.1f}"
    groups = re.findall(r"colspan=(\d) scope=colgroup>(\w+)", table)
    assert groups == [("3", "Image"), ("5", "Pixel"), ("1", "All")]
    names = re.findall(r"<th scope=col>([^<]+)</th>", table)
    assert names[3:] == ["AUROC", "AP", "F1-max", "AUPRO", "IoU-max", "mAD"]


def test_rules_and_pieces_stand_with_the_table() -> None:
    pieces = {"auroc": 0.875, "ap": 0.9, "f1max": 0.8, "n": 21.0}
    result = replace(class_result(), samples=pieces, grid_bound=2e-6)
    evaluation = Evaluation(classes={"nut": result}, seconds=1)
    text = page(evaluation).text
    assert "nut: over 21 pieces, the highest of each one's views: AUROC 87.5" in text
    assert "within 0.0002 points of percent of full precision" in text
    for name, rule in evaluation.protocol.rules().items():
        assert f"{name}: {rule}" in text


def test_what_calibration_left_out_and_promises_is_said() -> None:
    facts = replace(
        FACTS,
        left_out={"nut": ["nut/train/good/7.png"]},
        promises={"nut": "Guaranteed from 2 held-out good images."},
        colour_marks={"nut": [(0.5, 0.2), (0.9, 0.05), (0.95, 0.02), (1.6, 0.01), (3.0, 0.001)]},
    )
    found = page(Evaluation(classes={"nut": class_result()}, seconds=1), facts)
    words = (
        "raw score units. Guaranteed from 2 held-out good images. Left out: nut/train/good/7.png."
    )
    assert words in found.text
    marks = re.findall(r'left:([\d.]+)%">(p [\d.]+ %)<', found.html)
    assert marks == [("80.00", "p 1 %"), ("47.50", "p 2 %"), ("25.00", "p 20 %")]


def test_all_classes_together_are_ranked_by_score_over_threshold() -> None:
    classes = {"nut": measured("nut", 1), "bolt": measured("bolt", 2)}
    found = page(Evaluation(classes=classes, seconds=1))
    images = [one for result in classes.values() for one in result.images]
    value = auroc(np.array([i.defect for i in images]), np.array([i.ratio for i in images]))
    assert f"all images, AUROC {100 * value:.1f}" in found.text
    assert "All classes together" in found.text
    alone = page(Evaluation(classes={"nut": classes["nut"]}, seconds=1))
    assert "All classes together" not in alone.text
