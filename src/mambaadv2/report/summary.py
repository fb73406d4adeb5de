"""The first screen: how good the model is, and where it fails; and, last, how it was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from mambaadv2.errors import Problem
from mambaadv2.report.charts import line_chart
from mambaadv2.report.facts import Facts
from mambaadv2.results import METRICS, ClassResult, Evaluation

_GROUPS = (("Image", 3), ("Pixel", 4), ("All", 2))
_NAMES = ("AUROC", "AP", "F1-max", "AUROC", "AP", "F1-max", "AUPRO", "mAD", "IoU-max")
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
    return "\n".join(
        (
            f"<h1>{escape(facts.title)}</h1>",
            f"<p class=soft>{classes}, {evaluation.images} test images, protocol "
            f"{escape(evaluation.protocol.name)}, {escape(facts.time)}</p>",
            _cards(evaluation),
            _weakest(evaluation),
            "<h2>All classes</h2>",
            _table(evaluation),
            *(f"<p class=soft>{escape(note)}</p>" for note in evaluation.footnotes()),
            _skipped(evaluation.skipped),
        )
    )


def anchor(evaluation: Evaluation, name: str) -> str:
    """The id of a class's section: its number, so that any name will do."""
    return f"class-{list(evaluation.classes).index(name) + 1}"


def percent(value: float | None) -> str:
    """In percent with one decimal, a dash where undefined."""
    if value is None:
        return "–"
    if not 0 <= value <= 1:
        raise ValueError(f"expected a metric in 0..1 or None, got {value}")
    return f"{100 * value:.1f}"


def share(part: int, whole: int) -> str:
    """A part in percent, whole numbers only at the ends: 99.9 % never reads as 100."""
    if part in (0, whole):
        return f"{100 * part // whole} %"
    return f"{min(99.9, max(0.1, 100 * part / whole)):.1f} %"


def bar(part: int, whole: int) -> str:
    """A bar as wide as the part is of the whole."""
    return f'<span class=bar><i style="width:{100 * part / whole:.1f}%"></i></span>'


def _cards(evaluation: Evaluation) -> str:
    classes = evaluation.classes.values()
    defects = sum(result.n_defect for result in classes)
    goods = sum(result.n_good for result in classes)
    found = sum(result.n_found for result in classes)
    flagged = sum(result.n_flagged for result in classes)
    cards = []
    for metric, name in (("image_auroc", "image AUROC"), ("pixel_auroc", "pixel AUROC")):
        n, value = evaluation.n_classes[metric], evaluation.mean[metric]
        over = f"mean of {n} classes" if n > 1 else "of one class" if n else "undefined here"
        cards.append((percent(value) + (" %" if n else ""), name, over))
    if defects:
        cards.append((share(found, defects), "of defects found", f"{found} of {defects}"))
    if goods:
        of = f"{flagged} of {goods}"
        cards.append((share(flagged, goods), "of good images flagged", f"{of}: false alarms"))
    items = "".join(
        f"<li><b>{big}</b><span class=name>{name}</span><span>{small}</span></li>"
        for big, name, small in cards
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


def _table(evaluation: Evaluation) -> str:
    groups = "".join(f"<th colspan={n} scope=colgroup>{group}</th>" for group, n in _GROUPS)
    names = "".join(f"<th scope=col>{name}</th>" for name in _NAMES)
    classes = evaluation.classes.values()
    total = [
        sum(result.n_flagged for result in classes),
        sum(result.n_good for result in classes),
        sum(result.n_found for result in classes),
        sum(result.n_defect for result in classes),
    ]
    rows = [_row(evaluation, name, result) for name, result in evaluation.classes.items()]
    if len(rows) > 1:
        cells = _cells(total, evaluation.mean)
        rows.append(f"<tr class=mean><th scope=row>all; mean</th>{cells}</tr>\n")
    return (
        "<div class=wide><table>\n<caption>Metrics in percent, higher is better.</caption>\n"
        "<thead><tr><th rowspan=2 scope=col>Class</th><th rowspan=2 scope=col>good<br>flagged</th>"
        f"<th rowspan=2 scope=col>defects<br>found</th>{groups}</tr>\n<tr>{names}</tr></thead>\n"
        f"<tbody>\n{''.join(rows)}</tbody></table></div>\n<p class=soft>Flagged and found: at the "
        "stored thresholds, which come from held-out good images only. A dash means that the "
        "metric is undefined there; mAD is the mean of the seven others.</p>"
    )


def _row(evaluation: Evaluation, name: str, result: ClassResult) -> str:
    cells = _cells(
        [result.n_flagged, result.n_good, result.n_found, result.n_defect], result.metrics
    )
    link = f'<a href="#{anchor(evaluation, name)}">{escape(name)}</a>{"*" if result.notes else ""}'
    return f"<tr><th scope=row>{link}</th>{cells}</tr>\n"


def _cells(counts: Sequence[int], metrics: Mapping[str, float | None]) -> str:
    flagged, good, found, defect = counts
    texts = [f"{flagged} / {good}", f"{found} / {defect}"]
    texts += [percent(metrics[metric]) for metric in METRICS]
    return "".join(f"<td>{cell}</td>" for cell in texts)


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
