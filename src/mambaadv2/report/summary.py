"""The first screen: how good the model is, and where it fails; and, last, how it was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from mambaadv2.errors import Problem
from mambaadv2.report.charts import line_chart
from mambaadv2.report.facts import Facts
from mambaadv2.report.shares import interval_range, percent, plural, rate_range, share
from mambaadv2.report.table import class_table
from mambaadv2.results import Evaluation

_WEAKEST = 6


@dataclass(frozen=True, slots=True)
class _Kind:
    """The images of one defect type or the good ones of a class, by how often they go wrong."""

    class_name: str
    name: str
    wrong: int
    total: int

    @property
    def share(self) -> float:
        return self.wrong / self.total


def head(evaluation: Evaluation, facts: Facts) -> str:
    """Title, four numbers, what is weakest and the table of all classes."""
    count = len(evaluation.classes)
    classes = f"{count} class{'es' if count > 1 else ''}"
    notes = (*evaluation.footnotes(), *(f"{line}." for line in evaluation.pieces("–")))
    return "\n".join(
        (
            f"<h1>{escape(facts.title)}</h1>",
            f"<p class=soft>{classes}, {plural(evaluation.images, 'test image')}, protocol "
            f"{escape(evaluation.protocol.name)}, {escape(facts.time)}</p>",
            _cards(evaluation),
            _weakest(evaluation),
            "<h2>All classes</h2>",
            class_table(evaluation, lambda name: anchor(evaluation, name)),
            *(f"<p class=soft>{escape(note)}</p>" for note in notes),
            _skipped(evaluation.skipped),
        )
    )


def anchor(evaluation: Evaluation, name: str) -> str:
    """The id of a class's section: its number, so that any name will do."""
    return f"class-{list(evaluation.classes).index(name) + 1}"


def _cards(evaluation: Evaluation) -> str:
    cards = []
    for metric, name in (("image_auroc", "image AUROC"), ("pixel_auroc", "pixel AUROC")):
        n, value = evaluation.n_classes[metric], evaluation.mean[metric]
        over = f"mean of {n} classes" if n > 1 else "of one class" if n else "undefined here"
        ends = interval_range(evaluation.interval(metric))
        cards.append((percent(value) + (" %" if n else ""), name, over, ends and f"{ends} %"))
    for part, whole, name in (
        (evaluation.n_found, evaluation.n_defect, "of defects found"),
        (evaluation.n_flagged, evaluation.n_good, "of good images flagged"),
    ):
        if whole:
            of = f"{part} of {whole}"
            cards.append((share(part, whole), name, of, rate_range(part, whole)))
    items = "".join(
        f"<li><b>{big}</b><span class=name>{name}</span><span>{small}</span>"
        + (f"<span>95 % interval {ends}</span>" if ends else "")
        + "</li>"
        for big, name, small, ends in cards
    )
    return f"<ul class=cards>{items}</ul>"


def _weakest(evaluation: Evaluation) -> str:
    kinds = sorted(_kinds(evaluation), key=lambda kind: (-kind.share, -kind.wrong))
    missed = [kind for kind in kinds if kind.wrong and kind.name != "good"]
    alarms = [kind for kind in kinds if kind.wrong and kind.name == "good"]
    if not missed and not alarms:
        return "<p>At the stored thresholds no image of this test was judged wrong.</p>"
    lines = []
    for title, wrong, verb in (
        ("Misses most", missed, "missed"),
        ("False alarms", alarms, "flagged"),
    ):
        if wrong:
            texts = [
                f'<a href="#{anchor(evaluation, k.class_name)}">{escape(k.class_name)}</a>'
                + (f" {escape(k.name)}" if k.name != "good" else "")
                + f": {k.wrong} of {k.total} {verb}"
                for k in wrong[:_WEAKEST]
            ]
            more = f"; and {len(wrong) - _WEAKEST} more" if len(wrong) > _WEAKEST else ""
            lines.append(f"<p><strong>{title}:</strong> {'; '.join(texts)}{more}.</p>")
    return "".join(lines)


def _kinds(evaluation: Evaluation) -> Iterable[_Kind]:
    for name, result in evaluation.classes.items():
        for kind, images in result.by_kind().items():
            yield _Kind(name, kind, sum(not image.right for image in images), len(images))


def _skipped(skipped: Sequence[Problem]) -> str:
    if not skipped:
        return ""
    items = "".join(f"<li>{escape(problem.message)}</li>" for problem in skipped)
    return (
        f"<h2>Left out: {len(skipped)}</h2>\n<p>These could not be used; the numbers are without "
        f"them.</p>\n<ul class=soft>{items}</ul>"
    )


def provenance(facts: Facts) -> str:
    """The training curve, the command and everything that the numbers depend on."""
    parts = []
    if facts.loss:
        chart = line_chart(
            {"training loss": facts.loss},
            title="Training loss",
            x_label="epoch",
            y_label="loss",
            size=(480, 320),
        )
        parts.append(f"<h2>Training</h2>\n<div class=charts>{chart}</div>")
    parts.append(f"<h2>How it was measured</h2>\n<p><code>{escape(facts.command)}</code></p>")
    for heading, rows in facts.tables.items():
        cells = "".join(
            f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>\n"
            for name, value in rows.items()
        )
        parts.append(
            f"<h3>{escape(heading)}</h3>\n<table class=facts><tbody>{cells}</tbody></table>"
        )
    return "\n".join(parts)
