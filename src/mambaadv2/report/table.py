"""The table of all classes: metrics and decisions, each with the interval that images allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape

from mambaadv2.metrics import Interval
from mambaadv2.report.shares import interval_range, percent, plural, rate_range, rounded_up
from mambaadv2.results import LEVEL, ClassResult, Evaluation

COLUMNS = (
    ("Image", {"image_auroc": "AUROC", "image_ap": "AP", "image_f1max": "F1-max"}),
    (
        "Pixel",
        {
            **{"pixel_auroc": "AUROC", "pixel_ap": "AP", "pixel_f1max": "F1-max"},
            **{"pixel_aupro": "AUPRO", "pixel_iou_max": "IoU-max"},
        },
    ),
    ("All", {"mad": "mAD"}),
)
"""Group to metric to heading, in the order of the page: what is of pixels stands together."""

ORDER = tuple(metric for _, metrics in COLUMNS for metric in metrics)


def class_table(evaluation: Evaluation, anchor: Callable[[str], str]) -> str:
    """All classes and their mean; anchor: a class's name to the id of its section."""
    rows = [_row(name, result, anchor(name)) for name, result in evaluation.classes.items()]
    if len(rows) > 1:
        cells = _cells(evaluation, evaluation.mean, evaluation.interval)
        rows.append(f"<tr class=mean><th scope=row>all; mean</th>{cells}</tr>\n")
    return (
        f"<div class=wide><table class=metrics>\n<caption>In percent, higher is better.</caption>\n"
        f"<thead>{_head()}</thead>\n<tbody>\n{''.join(rows)}</tbody></table></div>"
        f"<p class=soft>{_meaning(evaluation)}</p>{_rules(evaluation)}"
    )


def group_heads(columns: str = "") -> tuple[str, str]:
    """The two rows of cells that head the metrics: groups and names.

    columns: cells that span both rows and stand before the first group.
    """
    groups = "".join(
        f"<th colspan={len(metrics)} scope=colgroup>{group}</th>" for group, metrics in COLUMNS
    )
    names = "".join(
        f"<th scope=col>{name}</th>" for _, metrics in COLUMNS for name in metrics.values()
    )
    return columns + groups, names


def _head() -> str:
    columns = "".join(
        f"<th rowspan=2 scope=col>{text}</th>"
        for text in ("Class", "good<br>flagged", "defects<br>found")
    )
    groups, names = group_heads(columns)
    return f"<tr>{groups}</tr>\n<tr>{names}</tr>"


def _row(name: str, result: ClassResult, anchor: str) -> str:
    link = f'<a href="#{anchor}">{escape(name)}</a>{"*" if result.notes else ""}'
    cells = _cells(result, result.metrics, result.interval)
    return f"<tr><th scope=row>{link}</th>{cells}</tr>\n"


def _cells(
    counted: Evaluation | ClassResult,
    metrics: Mapping[str, float | None],
    interval: Callable[[str], Interval | None],
) -> str:
    counts = ((counted.n_flagged, counted.n_good), (counted.n_found, counted.n_defect))
    pairs = [
        (f"{part} / {whole}", rate_range(part, whole) if whole else "") for part, whole in counts
    ]
    pairs += [(percent(metrics[metric]), interval_range(interval(metric))) for metric in ORDER]
    return "".join(
        f"<td>{big}{f'<small>{small}</small>' if small else ''}</td>" for big, small in pairs
    )


def _meaning(evaluation: Evaluation) -> str:
    text = ""
    drawn = evaluation.resampling
    if drawn is not None:
        text = (
            f"Below each metric its {100 * LEVEL:g} % interval, had other images of these classes "
            f"been tested: BCa from {plural(drawn.replicates, 'resampling')} of the images. One "
            "without width says that no image tested was out of order, not that none could be. "
        )
    bounds = [c.grid_bound for c in evaluation.classes.values() if c.grid_bound is not None]
    if bounds:
        text += (
            "Pixel scores are counted on a fine grid; the pixel metrics lie within "
            f"{rounded_up(100 * max(bounds))} points of percent of full precision. "
        )
    return (
        f"{text}Flagged and found: at the stored thresholds, with exact 95 % intervals (Clopper "
        "and Pearson). A dash means that the metric is undefined there; mAD is the mean of the "
        "seven others without IoU-max."
    )


def _rules(evaluation: Evaluation) -> str:
    said = "; ".join(
        f"{escape(name)}: {escape(words)}" for name, words in evaluation.protocol.rules().items()
    )
    return (
        f"<p class=soft><strong>Protocol {escape(evaluation.protocol.name)}.</strong> {said}. "
        "Numbers of another protocol are not comparable with these.</p>"
    )
