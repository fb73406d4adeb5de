"""Two evaluations of the same images side by side: numbers, their differences, changed verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from mambaadv2.compare import Difference, differences
from mambaadv2.report.facts import Facts
from mambaadv2.report.figures import verdict
from mambaadv2.report.shares import interval_range, percent, plural
from mambaadv2.report.table import ORDER, group_heads
from mambaadv2.report.thumbnails import grid, ranked
from mambaadv2.results import ClassResult, Evaluation, ImageResult

_MOST_SHOWN = 24  # pictures of images whose verdict changed, of each class and way


def comparison(
    evaluation: Evaluation, against: Evaluation, facts: Facts, anchor: Callable[[str], str]
) -> str:
    """The section that compares; anchor: a class's name to the id of its section.

    Raises `ValueError` unless both are of the same classes, images and protocol.
    """
    _require_same(evaluation, against)
    parts = [
        f'<h2 id="against">Compared with {escape(facts.against)}</h2>',
        f"<p class=soft>{_guide(evaluation, against)}</p>",
        _table(evaluation, against, facts.against, anchor),
        _verdicts(evaluation, against, anchor),
    ]
    return "\n".join(parts)


def _require_same(evaluation: Evaluation, against: Evaluation) -> None:
    if evaluation.protocol != against.protocol:
        raise ValueError(
            f"against: expected protocol {evaluation.protocol.name}, got {against.protocol.name}"
        )
    for name in {*evaluation.classes, *against.classes}:
        names = [
            {image.name for image in each.classes[name].images} if name in each.classes else None
            for each in (evaluation, against)
        ]
        if names[0] != names[1]:
            raise ValueError(f"against: expected the same images of class {name!r} in both")


def _guide(evaluation: Evaluation, against: Evaluation) -> str:
    words = "Differences are this run minus the other, in points of percent."
    if evaluation.resampling is None or evaluation.resampling != against.resampling:
        return (
            f"{words} They have no intervals: both runs need them, from the same seed and number "
            "of resamplings."
        )
    return (
        f"{words} Below each its 95 % interval, paired: both runs are resampled with the same "
        "images. ▲ and ▼ mark those whose interval is without 0. Of the many numbers here one in "
        "twenty is marked by chance alone, and no interval over images knows how much trainings "
        "vary by their seeds."
    )


def _table(
    evaluation: Evaluation, against: Evaluation, name: str, anchor: Callable[[str], str]
) -> str:
    """Both runs, the difference of their means, and those of each class."""
    several = len(evaluation.classes) > 1
    found = {(item.class_name, item.metric): item for item in differences(against, evaluation)}
    heads = "".join(
        f"<th rowspan=2 scope=col>{text}</th>"
        for text in ("Mean" if several else "Run", "good<br>flagged", "defects<br>found")
    )
    groups, names = group_heads(heads)
    rows = [
        _run_row("this run", evaluation),
        _run_row(escape(name), against),
        _difference_row(
            "difference",
            evaluation,
            against,
            [found.get((None, metric)) for metric in ORDER],
            " class=mean",
        ),
    ]
    if several:
        rows += [
            _difference_row(
                f'<a href="#{anchor(each)}">{escape(each)}</a>',
                result,
                against.classes[each],
                [found.get((each, metric)) for metric in ORDER],
            )
            for each, result in evaluation.classes.items()
        ]
    return (
        f"<div class=wide><table class=metrics>\n<thead><tr>{groups}</tr>\n<tr>{names}</tr></thead>"
        f"\n<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _run_row(name: str, evaluation: Evaluation) -> str:
    cells = f"<td>{evaluation.n_flagged} / {evaluation.n_good}</td>"
    cells += f"<td>{evaluation.n_found} / {evaluation.n_defect}</td>"
    for metric in ORDER:
        ends = interval_range(evaluation.interval(metric))
        small = f"<small>{ends}</small>" if ends else ""
        cells += f"<td>{percent(evaluation.mean[metric])}{small}</td>"
    return f"<tr><th scope=row class=text>{name}</th>{cells}</tr>\n"


def _difference_row(
    name: str,
    ours: Evaluation | ClassResult,
    others: Evaluation | ClassResult,
    found: Sequence[Difference | None],
    kind: str = "",
) -> str:
    counts = f"<td>{_whole(ours.n_flagged - others.n_flagged)}</td>"
    counts += f"<td>{_whole(ours.n_found - others.n_found)}</td>"
    cells = "".join(map(_difference_cell, found))
    return f"<tr{kind}><th scope=row>{name}</th>{counts}{cells}</tr>\n"


def _difference_cell(found: Difference | None) -> str:
    if found is None:
        return "<td>–</td>"
    text = _signed(found.second - found.first)
    ends = found.interval
    if ends is None:
        return f"<td>{text}</td>"
    small = f"<small>{_signed(ends.low)} to {_signed(ends.high)}</small>"
    if not found.clear:
        return f"<td>{text}{small}</td>"
    kind, arrow = ("right", "▲") if ends.low > 0 else ("wrong", "▼")
    return f"<td><b class={kind}>{arrow} {text}</b>{small}</td>"


def _whole(value: int) -> str:
    return f"{value:+d}".replace("-", "−") if value else "0"


def _signed(value: float) -> str:
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def _verdicts(evaluation: Evaluation, against: Evaluation, anchor: Callable[[str], str]) -> str:
    """The images that only one of the runs judges right, class by class."""
    blocks = []
    for name, result in evaluation.classes.items():
        before = {image.name: image for image in against.classes[name].images}
        changed = [image for image in result.images if image.right != before[image.name].right]
        for right, title in ((False, "wrong now, right there"), (True, "right now, wrong there")):
            images = ranked(image for image in changed if image.right == right)
            if images:
                blocks.append(_changed(name, title, images, result, anchor(name)))
    if not blocks:
        return "<h3>Changed verdicts</h3>\n<p>Both runs judge every image alike.</p>"
    return "\n".join(("<h3>Changed verdicts</h3>", *blocks))


def _changed(
    name: str, title: str, images: Sequence[ImageResult], result: ClassResult, anchor: str
) -> str:
    kinds: dict[str, int] = {}
    for image in images:
        kinds[verdict(image)] = kinds.get(verdict(image), 0) + 1
    words = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    small = {} if result.gallery is None else result.gallery.thumbnails
    shown = images[:_MOST_SHOWN]
    more = f" The first {_MOST_SHOWN} are shown." if len(images) > _MOST_SHOWN else ""
    return (
        f'<p class=before><strong><a href="#{anchor}">{escape(name)}</a>, {title}:</strong> '
        f"{plural(len(images), 'image')} ({words}).{more}</p>\n{grid(shown, small)}"
    )
