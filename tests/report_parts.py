"""Evaluations, facts and a parser: what the tests of the report's page are made of."""

from __future__ import annotations

import io
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mambaadv2.measure import ClassMeasure
from mambaadv2.metrics import Resampling
from mambaadv2.protocols import EXACT
from mambaadv2.report import Facts, GalleryPicker, report_page
from mambaadv2.results import METRICS, ClassResult, Curves, Evaluation, ImageResult

NASTY = """<script>alert("1")</script> & 'x'"""


def image(
    name: str = "nut/test/cut/0.png",
    *,
    kind: str = "cut",
    score: float = 0.03,
    flagged: bool = True,
    p_value: float | None = 1 / 3,
) -> ImageResult:
    """Held-out scores are those of `FACTS`; a defect covers 9 of 64 pixels."""
    return ImageResult(
        name=name,
        kind=kind,
        defect=kind != "good",
        score=score,
        threshold=0.02,
        flagged=flagged,
        found_class="nut",
        p_value=p_value,
        pixels=64,
        defect_pixels=None if kind == "good" else 9,
    )


def class_result(kind: str = "cut", name: str = "nut", **metrics: float | None) -> ClassResult:
    picker = GalleryPicker((0.5, 2.0))
    images = [
        image(f"{name}/good/0.png", kind="good", score=0.01, flagged=False),
        image(f"{name}/good/1.png", kind="good", score=0.03),
        image(f"{name}/{kind}/0.png", kind=kind, score=0.012, flagged=False),
        image(f"{name}/{kind}/1.png", kind=kind, score=0.05),
    ]
    mask = np.zeros((8, 8), bool)
    mask[2:5, 3:6] = True
    for one in images:
        picker.add(
            one,
            np.full((8, 8, 3), 99, np.uint8),
            np.full((8, 8), 0.01, np.float32),
            mask if one.defect else None,
        )
    curve = Curves(roc=((0.0, 0.0), (1.0, 1.0)), precision_recall=((0.5, 1.0), (1.0, 0.5)))
    return ClassResult(
        metrics=dict.fromkeys(METRICS, 0.5) | metrics,
        n_good=2,
        n_defect=2,
        images=tuple(images),
        image_curves=curve,
        pixel_curves=curve,
        gallery=picker.gallery(),
    )


def pixels(content: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(content)) as opened:
        assert (opened.format, opened.mode) == ("WEBP", "RGB")
        return np.asarray(opened)


def measured(name: str, seed: int, *, shift: float = 0.0) -> ClassResult:
    """A class as `evaluate` measures one, of noise maps with a hotter square; shift: of defects."""
    rng = np.random.default_rng(seed)
    measure = ClassMeasure(EXACT, Resampling(replicates=200), pixels=True)
    picker = GalleryPicker((0.5, 2.0))
    for number in range(24):
        defect = number % 3 == 0
        values = rng.random((12, 12)).astype(np.float32) * np.float32(0.02)
        mask = np.zeros((12, 12), bool)
        if defect:
            mask[2:6, 3:7] = True
            values[mask] += np.float32(max(0.0, rng.normal(0.006 + shift, 0.006)))
        score = float(values.max())
        one = replace(
            image(f"{name}/{number}.png", kind="cut" if defect else "good", score=score),
            flagged=score > 0.02,
        )
        measure.add(one, values, mask if defect else None)
        picker.add(one, np.full((12, 12, 3), 99, np.uint8), values, mask if defect else None)
    return replace(measure.result(), gallery=picker.gallery())


class Page(HTMLParser):
    """Collects what the tests look at."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.html = html
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "br", "wbr", "input"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "data", "action"):
                self.links.append(value or "")
            assert not name.startswith("on"), "no scripts"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


FACTS = Facts(
    title="Evaluation of run",
    command="mambaadv2 evaluate run data --report page.html",
    time="2026-01-02 03:04 UTC",
    tables={"Model": {"SHA-256 of the weights": "ab12"}},
    thresholds={"nut": 0.02},
    held_out={"nut": (0.005, 0.008)},
    held_out_images={"nut": 2},
    loss=[(1.0, 5.0), (2.0, 3.0)],
)


def page(evaluation: Evaluation, facts: Facts = FACTS, against: Evaluation | None = None) -> Page:
    return Page(report_page(evaluation, facts, against))
