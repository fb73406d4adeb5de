"""What a run leaves for people: a line chart as SVG, and the page that an evaluation writes.

Both carry their own styles, follow the reader's light or dark setting, use no script and load
nothing from anywhere.
"""

from __future__ import annotations

from html import escape

from mambaadv2.report.charts import line_chart
from mambaadv2.report.classes import reading_guide, section
from mambaadv2.report.comparison import comparison
from mambaadv2.report.facts import Facts
from mambaadv2.report.gallery import GalleryPicker, thumbnail_shares
from mambaadv2.report.overall import image_curves, overall
from mambaadv2.report.style import PAGE
from mambaadv2.report.summary import anchor, head, provenance
from mambaadv2.results import Evaluation

__all__ = ["Facts", "GalleryPicker", "line_chart", "report_page", "thumbnail_shares"]


def report_page(evaluation: Evaluation, facts: Facts, against: Evaluation | None = None) -> str:
    """One HTML page: numbers, what fails, charts and pictures of every class, how it was measured.

    Charts need the classes' `images` and curves, pictures their `gallery`; what is missing is left
    out. against: another evaluation of the same images by the same protocol, to stand beside; its
    curves are made from its images' scores. All texts are escaped.

    Raises `ValueError` for a metric outside 0..1, and for `against` of other images or rules.
    """
    parts = [head(evaluation, facts)]
    if against is not None:
        parts.append(comparison(evaluation, against, facts, lambda name: anchor(evaluation, name)))
    parts += [reading_guide(facts), overall(evaluation, facts)]
    parts += [
        section(
            name,
            result,
            facts,
            anchor(evaluation, name),
            None if against is None else image_curves(against.classes[name].images),
        )
        for name, result in evaluation.classes.items()
    ]
    parts.append(provenance(facts))
    return PAGE.format(title=escape(facts.title), body="\n".join(parts))
