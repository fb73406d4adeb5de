"""The gallery of every image: which are kept, in which order, how small, and what is said."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tests.report_parts import NASTY, class_result, image, measured, page, pixels

from mambaadv2.report import GalleryPicker, thumbnail_shares
from mambaadv2.report.gallery import THUMBNAIL, THUMBNAIL_BYTES, make_thumbnail
from mambaadv2.report.thumbnails import every_image, ranked
from mambaadv2.results import Evaluation, ImageResult

RGB, HEAT = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.float32)


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 500), max_size=8), st.integers(0, 900))
def test_thumbnails_are_shared_fairly(counts: dict[str, int], most: int) -> None:
    shares = thumbnail_shares(counts, most)
    assert set(shares) == set(counts)
    assert sum(shares.values()) <= most
    assert all(0 <= shares[name] <= counts[name] for name in counts)
    # Nothing is left unused, and no class that wants more has less than another.
    cut = [name for name in counts if shares[name] < counts[name]]
    assert not cut or sum(shares.values()) > most - len(counts)
    for name in cut:
        assert shares[name] >= max(shares.values()) - 1


def cases() -> st.SearchStrategy[list[ImageResult]]:
    one = st.tuples(st.booleans(), st.integers(0, 8))
    return st.lists(one, max_size=25).map(
        lambda found: [
            image(
                f"{number}",
                kind="cut" if defect else "good",
                score=score * 0.01,
                flagged=score * 0.01 > 0.02,
            )
            for number, (defect, score) in enumerate(found)
        ]
    )


@given(cases(), st.integers(0, 12))
def test_those_kept_are_the_wrong_ones_and_those_near_the_threshold(
    images: list[ImageResult], most: int
) -> None:
    picker = GalleryPicker((0.5, 2.0), most)
    for one in images:
        picker.add(one, RGB, HEAT, None)
    kept = picker.gallery().thumbnails
    best = sorted(
        enumerate(images),
        key=lambda pair: (pair[1].right, abs(math.log(max(pair[1].ratio, 1e-12))), pair[0]),
    )
    assert set(kept) == {one.name for _, one in best[:most]}


@given(cases())
def test_the_order_is_p_value_then_score(images: list[ImageResult]) -> None:
    levels = [None, 0.1, 0.5]
    images = [replace(one, p_value=levels[n % 3]) for n, one in enumerate(images)]
    found = [(1.0 if i.p_value is None else i.p_value, -i.ratio) for i in ranked(images)]
    assert found == sorted(found)


def test_thumbnails_are_small_even_of_noise() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (300, 200, 3)).astype(np.uint8)
    heat = np.zeros((300, 200), np.float32)
    content = make_thumbnail(image(), noise, heat, (0.5, 2.0))
    assert pixels(content).shape == (THUMBNAIL, 64, 3)
    smooth = np.full((50, 60, 3), 99, np.uint8)
    hot = np.zeros((50, 60), np.float32)
    hot[:, 30:] = 0.06
    content = make_thumbnail(image(), smooth, hot, (0.5, 2.0))
    assert len(content) < THUMBNAIL_BYTES
    shown = pixels(content).astype(int)
    assert shown.shape == (50, 60, 3), "never enlarged"
    assert abs(shown[:, :25] - 99).max() < 12
    assert shown[:, 35:, 0].min() > 180


def test_every_image_is_shown_defects_before_good_ones() -> None:
    result = measured("nut", 1)
    assert result.gallery is not None
    html = every_image(result, result.gallery.thumbnails, "class-1")
    assert f"All {len(result.images)} test images by p-value" in html
    names = re.findall(r'title="([^"]+)"', html)
    defects = [one.name for one in ranked(one for one in result.images if one.defect)]
    good = [one.name for one in ranked(one for one in result.images if not one.defect)]
    assert names == defects + good
    assert html.count("loading=lazy") == len(result.images)
    wrong = {one.name for one in result.images if not one.right}
    flagged = {one.name for one in result.images if one.flagged}
    for kinds, name in re.findall(r'<figure class="([^"]+)" title="([^"]+)"', html):
        assert ("wrong-one" in kinds) == (name in wrong)
        assert ("flagged" in kinds) == (name in flagged)


def test_what_is_not_shown_is_said() -> None:
    result = measured("nut", 1)
    assert result.gallery is not None
    some = dict(list(result.gallery.thumbnails.items())[:5])
    html = every_image(result, some, "class-1")
    assert "5 of 24 test images by p-value" in html
    assert "Not every image is shown" in html
    assert html.count("<img") == 5
    assert every_image(result, {}, "class-1") == ""


def test_the_filters_of_two_classes_do_not_meet() -> None:
    classes = {"nut": measured("nut", 1), "bolt": measured("bolt", 2)}
    found = page(Evaluation(classes=classes, seconds=1))
    assert set(re.findall(r"<input type=radio name=\"([^\"]+)\"", found.html)) == {
        *["show-class-1", "show-class-2"]
    }
    assert found.html.count("checked>") == 2


def test_names_of_thumbnails_are_escaped() -> None:
    found = page(Evaluation(classes={"nut": class_result(name=NASTY)}, seconds=1))
    assert "script" not in found.tags
    assert found.open == []
