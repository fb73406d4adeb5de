"""Every test image of a class as a small picture, by p-value; filters without a script.

What keeps thousands of pictures usable: Chromium loads a lazy picture when it comes near the
window, its address being `data:` or not; and the closed <details> and, once open,
`content-visibility` spare the layout of what is not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from mambaadv2.report.figures import data_url, verdict
from mambaadv2.report.shares import p_text, plural
from mambaadv2.results import ClassResult, ImageResult

_FILTERS = (("all", "all"), ("wrong", "judged wrong"), ("found", "called defect"))


def every_image(result: ClassResult, thumbnails: Mapping[str, bytes], anchor: str) -> str:
    """A gallery, closed at first; anchor: the id of the class's section."""
    if not thumbnails:
        return ""
    count = len(result.images)
    if len(thumbnails) == count:
        title = f"{'All ' if count > 1 else ''}{plural(count, 'test image')} by p-value"
        note = ""
    else:
        title = f"{len(thumbnails)} of {plural(count, 'test image')} by p-value"
        note = (
            "<strong>Not every image is shown:</strong> they would make the page too large. Those "
            "judged wrong come first, then those whose scores are nearest to the threshold. "
        )
    shown = ranked(image for image in result.images if image.name in thumbnails)
    groups = [
        (f"{name}: {len(images)}", images)
        for name, images in (
            ("Defects", [image for image in shown if image.defect]),
            ("Good", [image for image in shown if not image.defect]),
        )
        if images
    ]
    body = "\n".join(
        f"<h4>{heading}</h4>\n{grid(images, thumbnails, lazy=True)}" for heading, images in groups
    )
    return (
        f"<details class=every><summary>{title}</summary>\n<p class=soft>{note}The lowest p-value "
        "first, then the highest score; heat is laid over the images. A red frame is a wrong "
        f"decision.</p>\n{_filters(anchor)}\n{body}</details>"
    )


def ranked(images: Iterable[ImageResult]) -> list[ImageResult]:
    """By p-value, lowest first, then by score / threshold, highest first."""
    return sorted(images, key=lambda i: (2.0 if i.p_value is None else i.p_value, -i.ratio))


def grid(
    images: Sequence[ImageResult], thumbnails: Mapping[str, bytes], *, lazy: bool = False
) -> str:
    """Small pictures with captions; an image without a thumbnail has its caption alone."""
    how = " loading=lazy decoding=async" if lazy else ""
    cells = "\n".join(_cell(image, thumbnails.get(image.name), how) for image in images)
    return f"<div class=grid>\n{cells}\n</div>"


def _filters(anchor: str) -> str:
    choices = "".join(
        f'<label><input type=radio name="show-{anchor}" class=show-{kind}'
        f"{' checked' if kind == 'all' else ''}> {words}</label>"
        for kind, words in _FILTERS
    )
    return f'<p class=filters role=radiogroup aria-label="images shown">Show {choices}</p>'


def _cell(image: ImageResult, content: bytes | None, how: str) -> str:
    name = escape(image.name)
    kinds = f"{'' if image.right else ' wrong-one'}{' flagged' if image.flagged else ''}"
    picture = "" if content is None else f'<img src="{data_url(content)}" alt=""{how}>'
    said = "" if image.right else f"<b>{verdict(image)}</b><br>"
    p_value = "" if image.p_value is None else f"p {p_text(image.p_value)}, "
    short = escape("/".join(image.name.split("/")[-2:]))
    return (
        f'<figure class="one{kinds}" title="{name}">{picture}<figcaption>{said}'
        f"{p_value}{image.ratio:.2f} ×<br><span><bdi>{short}</bdi></span></figcaption></figure>"
    )
