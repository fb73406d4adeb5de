"""The report in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.report_parts import image, measured

from mambaadv2 import evaluate
from mambaadv2.calibrate import p_values
from mambaadv2.data.synthetic import CLASSES, generate
from mambaadv2.errors import Problem
from mambaadv2.predict import Prediction
from mambaadv2.report import Facts, report_page
from mambaadv2.report.gallery import make_thumbnail
from mambaadv2.results import ClassResult, Evaluation, Gallery

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ARGUMENTS = [
    *["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
    *["--disable-background-networking", "--disable-component-update", "--disable-sync"],
]
PATIENCE = 180_000  # milliseconds; only a browser that hangs takes that long

Open = Callable[..., "Page"]


HELD_OUT = tuple(n / 25 for n in range(20))


class Tinted:
    """A model that takes a colour channel for the anomaly map."""

    classes = tuple(CLASSES)

    def __init__(self, channel: int) -> None:
        self.channel = channel

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        maps = [image[:, :, self.channel].astype(np.float32) / np.float32(255) for image in images]
        return [
            Prediction(
                map=values,
                score=float(values.max()),
                threshold=0.95,
                defect=bool(values.max() > 0.95),
                class_name=self.classes[0],
                p_value=float(p_values(HELD_OUT, float(values.max()))),
            )
            for values in maps
        ]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        reason = "no Chromium: as root, scripts/browser installs Debian's"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=program, args=ARGUMENTS, timeout=PATIENCE
        )
        yield started
        started.close()


def test_the_script_that_installs_it_can_be_run() -> None:
    script = Path(__file__).resolve().parents[1] / "scripts" / "browser"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything that one can have."""
    folder = tmp_path_factory.mktemp("report")
    generate(folder / "data", seed=1, size=64, train=1, good=6, defect=3)
    found = evaluate(Tinted(0), folder / "data", report=folder / "plain.html", progress=False)
    other = evaluate(Tinted(2), folder / "data", progress=False)
    long = "a_name_that_does_not_break/" * 8
    problem = Problem(Path(long), f"{long}: cannot be read as an image")
    page = report_page(
        Evaluation(
            classes=found.classes,
            seconds=found.seconds,
            skipped=(problem,),
            resampling=found.resampling,
        ),
        Facts(
            title=f"Evaluation of {long}",
            command=f"mambaadv2 evaluate {long} data --report report.html",
            time="2026-01-02 03:04 UTC",
            tables={"Model": {"SHA-256 of the weights": "0123456789abcdef" * 4}},
            thresholds=dict.fromkeys(CLASSES, 0.95),
            held_out=dict.fromkeys(CLASSES, HELD_OUT),
            held_out_images=dict.fromkeys(CLASSES, 21),
            left_out=dict.fromkeys(CLASSES, (long,)),
            promises=dict.fromkeys(CLASSES, "1 % is assumed, not guaranteed."),
            colour_marks=dict.fromkeys(CLASSES, ((0.4, 0.5), (0.6, 0.2), (1.0, 0.05))),
            against=long,
            loss=[(float(n), 5 / n) for n in range(1, 30)],
        ),
        other,
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture
def show(browser: Browser, file: Path) -> Iterator[Open]:
    """Return a function that opens the report; at the end nothing was loaded or complained of."""
    complaints: list[str] = []
    requests: list[str] = []
    contexts = []

    def open_page(width: int = 1280, scheme: Any = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert {url for url in requests if not url.startswith("data:")} == {file.as_uri()}


@pytest.mark.parametrize("width", [1280, 360])
def test_nothing_is_wider_than_the_window(show: Open, width: int) -> None:
    page = show(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What scrolls on its own is a table and no more.
    cut = page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter(e =>
            !e.closest(".wide, svg, .scale, details:not([open])")
            && e.getBoundingClientRect().right > innerWidth + 1
        ).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert cut == []


def test_the_first_screen_says_how_good_it_is_and_where_it_fails(show: Open) -> None:
    page = show()
    for text in ("image AUROC", "of defects found", "of good images flagged", "Misses most:"):
        box = page.get_by_text(text, exact=False).first.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < 800, text


def test_pictures_are_decoded_and_described(show: Open) -> None:
    page = show()
    pictures = page.evaluate(
        """async () => Promise.all([...document.querySelectorAll("img[alt]:not([alt=''])")]
            .map(async i => {
            await i.decode(); return [i.naturalWidth, i.naturalHeight, i.alt]; }))"""
    )
    assert len(pictures) > 100
    assert all(0 < width <= 320 and 0 < height <= 320 and alt for width, height, alt in pictures)
    charts = page.evaluate(
        """() => [...document.querySelectorAll("svg")].map(s =>
            [s.getBoundingClientRect().width, s.querySelector("title").textContent])"""
    )
    assert len(charts) == 5 * len(CLASSES) + 4 + 1
    assert all(width > 300 and title for width, title in charts)
    captions = page.evaluate(
        '() => [...document.querySelectorAll("figcaption")].map(c => c.textContent)'
    )
    assert len(captions) > 30
    assert all(re.search(r"\d ×( threshold|p |\w)", caption) for caption in captions)


def test_headings_are_in_order_and_links_lead_to_them(show: Open) -> None:
    page = show()
    headings = page.evaluate(
        '() => [...document.querySelectorAll("h1, h2, h3")].map(h => [h.tagName, h.innerText])'
    )
    assert [text for tag, text in headings if tag == "H2"] == [
        *["All classes", "Left out: 1", f"Compared with {'a_name_that_does_not_break/' * 8}"],
        *["How to read what follows", "All classes together", *sorted(CLASSES)],
        *["Training", "How it was measured"],
    ]
    assert [tag for tag, _ in headings].count("H1") == 1
    for link in page.query_selector_all("a"):
        assert page.query_selector(link.get_attribute("href") or "") is not None


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = colour => { const [r, g, b] = rgb(colour).map(v => v / 255).map(v =>
    v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (rgb(colour)[3] === 255) return colour; } return "white"; };
  return ["h1", "p", "a", "td", "th", "code", ".soft", "figcaption", ".right", ".wrong", ".none",
          ".cards span", "td small", "summary", "label", ".one figcaption", ".one b", ".scale span",
          "tbody tr:nth-child(odd) small", "tbody tr:nth-child(odd) .wrong"].map(s => {
    const e = document.querySelector(s);
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    return [s, (a + 0.05) / (b + 0.05)]; });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(show: Open, scheme: str, tmp_path: Path) -> None:
    page = show(scheme=scheme)
    ratios = page.evaluate(CONTRAST)
    assert [pair for pair in ratios if pair[1] < 4.5] == []
    page.screenshot(path=tmp_path / "page.png", timeout=PATIENCE)
    with Image.open(tmp_path / "page.png") as picture:
        corner = picture.convert("RGB").getpixel((5, 5))
        colours = picture.convert("RGB").getcolors(2**20)
    assert isinstance(corner, tuple)
    assert (sum(corner) > 700) if scheme == "light" else (sum(corner) < 100)
    assert colours is not None
    assert len(colours) > 100


def test_charts_follow_the_dark_setting(show: Open) -> None:
    fills = []
    for scheme in ("light", "dark"):
        page = show(scheme=scheme)
        fills.append(
            page.evaluate('() => getComputedStyle(document.querySelector("svg .paper")).fill')
        )
    assert fills == ["rgb(255, 255, 255)", "rgb(18, 22, 27)"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_prints_on_a_few_sheets_of_white_paper(show: Open, scheme: str) -> None:
    page = show(scheme=scheme)
    content = page.pdf(prefer_css_page_size=True)
    sheets = re.findall(rb"/Type\s*/Page\b[^s]", content)
    assert 6 <= len(sheets) <= 24
    assert rb"/MediaBox [0 0 595" in content or rb"/MediaBox [0 0 594" in content, "A4"
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"
    shown = page.evaluate("[...document.querySelectorAll('.every')].map(e => e.offsetHeight)")
    assert shown == [0] * len(CLASSES), "thousands of small pictures are not for paper"


def test_the_gallery_opens_loads_and_filters_without_a_script(show: Open) -> None:
    page = show()
    gallery = page.locator("details.every").first
    loaded = "e => [...e.querySelectorAll('img')].filter(i => i.naturalWidth > 0).length"
    assert gallery.evaluate(loaded) == 0
    gallery.locator("summary").click()
    figures = gallery.locator("figure")
    count, wrong = figures.count(), gallery.locator("figure.wrong-one").count()
    assert 0 < wrong < count
    for number in range(count):
        figures.nth(number).scroll_into_view_if_needed()
    # Not `wait_for_function`, which needs the eval that the page forbids.
    gallery.evaluate(f"async e => {{ while (({loaded})(e) < {count}) {WAIT} }}")
    visible = "e => [...e.querySelectorAll('figure')].filter(f => f.checkVisibility()).length"
    assert gallery.evaluate(visible) == count
    gallery.get_by_text("judged wrong").click()
    assert gallery.evaluate(visible) == wrong
    gallery.get_by_text("called defect").click()
    assert gallery.evaluate(visible) == gallery.locator("figure.flagged").count()
    gallery.locator("input").first.click()
    assert gallery.evaluate(visible) == count


WAIT = "await new Promise(go => setTimeout(go, 50));"


def large_page() -> str:
    """5,000 images in two classes, their pictures noise, which takes the most bytes."""
    rng = np.random.default_rng(0)
    flat = np.zeros((96, 96), np.float32)
    classes: dict[str, ClassResult] = {}
    for name in ("nut", "bolt"):
        noise = [rng.integers(0, 256, (96, 96, 3)).astype(np.uint8) for _ in range(250)]
        contents = [make_thumbnail(image(), rgb, flat, (0.5, 2.0)) for rgb in noise]
        scores = rng.lognormal(-4, 0.5, 2500)
        images = [
            image(
                f"{name}/test/{'cut' if n % 2 else 'good'}/{n:05}.png",
                kind="cut" if n % 2 else "good",
                score=float(score),
                flagged=score > 0.02,
                p_value=(1 + n) / 2501,
            )
            for n, score in enumerate(scores)
        ]
        # Bytes after the picture's end make each address its own; the browser keeps equal ones.
        small = {o.name: contents[n % 250] + n.to_bytes(3, "big") for n, o in enumerate(images)}
        classes[name] = replace(
            measured(name, 1),
            images=tuple(images),
            n_good=1250,
            n_defect=1250,
            gallery=Gallery(misses=(), alarms=(), examples=(), thumbnails=small),
        )
    facts = Facts(title="Large", command="c", time="t", held_out=dict.fromkeys(classes, HELD_OUT))
    return report_page(Evaluation(classes=classes, seconds=1), facts)


@pytest.mark.slow
def test_five_thousand_images_open_and_scroll(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "large.html"
    path.write_text(large_page(), encoding="utf-8")
    assert path.stat().st_size < 30e6
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(PATIENCE)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(path.as_uri())
    loaded = "[...document.querySelectorAll('.every img')].filter(i => i.naturalWidth > 0).length"
    assert page.evaluate("document.querySelectorAll('.every img').length") == 5000
    assert page.evaluate(loaded) == 0, "closed galleries cost nothing"
    for summary in page.locator("summary").all():
        summary.click()
    last = page.locator("figure.one").last
    last.scroll_into_view_if_needed()
    page.evaluate(
        f"async () => {{ while (![...document.images].at(-1).naturalWidth) {WAIT} }}",
    )
    assert page.evaluate(loaded) < 1000, "only those near the window are loaded"
    assert page.evaluate("document.documentElement.scrollWidth") == 1280
    assert complaints == []
    page.close()
