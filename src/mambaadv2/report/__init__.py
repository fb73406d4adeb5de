"""What a run leaves for people: a line chart as SVG, and the page that an evaluation writes.

Both carry their own styles, follow the reader's light or dark setting, use no script and load
nothing from anywhere.
"""

from __future__ import annotations

from html import escape

from mambaadv2.report.charts import line_chart
from mambaadv2.report.classes import reading_guide, section
from mambaadv2.report.facts import Facts
from mambaadv2.report.gallery import GalleryPicker
from mambaadv2.report.style import PAGE
from mambaadv2.report.summary import anchor, head, provenance
from mambaadv2.results import Evaluation

__all__ = ["Facts", "GalleryPicker", "line_chart", "report_page"]


def report_page(evaluation: Evaluation, facts: Facts) -> str:
    """One HTML page: numbers, what fails, charts and pictures of every class, how it was measured.

    Charts need the classes' `images` and curves, pictures their `gallery`; what is missing is left
    out. All texts are escaped. Raises `ValueError` for a metric outside 0..1.
    """
    parts = [head(evaluation, facts), reading_guide(facts)]
    parts += [
        section(name, result, facts, anchor(evaluation, name))
        for name, result in evaluation.classes.items()
    ]
    parts.append(provenance(facts))
    return PAGE.format(title=escape(facts.title), body="\n".join(parts))
