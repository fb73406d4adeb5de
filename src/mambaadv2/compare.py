"""Two evaluations of the same images by the same rules: what differs, and whether it could be luck.

Differences are paired: both runs are resampled with the same images, so what makes an image hard
for both does not widen the interval. Training seeds vary besides, which no interval over images
knows: two trainings of one model differ too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mambaadv2.errors import DataError
from mambaadv2.evaluation_file import Filed, read_evaluation
from mambaadv2.metrics import Interval, Sampled, difference, mean_sampled
from mambaadv2.results import HEADINGS, LEVEL, METRICS, ClassResult, Evaluation, interval_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric of a class, or the mean over classes, in both evaluations, 0..1."""

    class_name: str | None
    """None for the mean."""
    metric: str
    first: float
    second: float
    interval: Interval | None
    """Of second - first; None where one of them has no replicates."""

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval is not None and not self.interval.low <= 0 <= self.interval.high


def compare(first: Path | str, second: Path | str) -> str:
    """Return the differences second - first as text: of the mean, then class by class.

    first, second: files of `evaluate`'s `json_path`, or run folders. Raises `DataError` as
    `require_comparable` does.

    >>> from mambaadv2.compare import compare  # doctest: +SKIP
    >>> print(compare("before.json", "after.json"))  # doctest: +SKIP
    """
    one, two = read_evaluation(first), read_evaluation(second)
    require_comparable(one, two)
    found = differences(one.evaluation, two.evaluation)
    lines = [
        f"first:  {one.path}",
        f"second: {two.path}",
        f"Protocol {one.evaluation.protocol.name}, in percent; second - first with its paired "
        f"{100 * LEVEL:.0f} % interval over images, * where it leaves out 0",
    ]
    if any(item.interval is None for item in found):
        lines.append("Without replicates in both files, drawn alike, there is no interval.")
    for name in dict.fromkeys(item.class_name for item in found):
        lines += ["", "mean of the classes" if name is None else name]
        lines += [_line(item) for item in found if item.class_name == name]
        if name is not None:
            classes = (one.evaluation.classes[name], two.evaluation.classes[name])
            if not (one.replaced or two.replaced):
                lines.append(f"  {verdict_changes(*classes)}")
    with_interval = [item for item in found if item.interval is not None]
    lines.append("")
    for filed in (one, two):
        if filed.replaced:
            lines.append(
                f"{filed.path}: thresholds were replaced since, so verdicts are not compared; "
                "evaluate that run again."
            )
    if with_interval:
        count = sum(item.clear for item in with_interval)
        chance = round((1 - LEVEL) * len(with_interval), 1)
        lines.append(
            f"{count} of {len(with_interval)} differences are marked; of as many without any, "
            f"about {chance:g} would be by chance. Seeds of the training vary besides."
        )
    return "\n".join((*lines, one.evaluation.protocol.line()))


def require_comparable(first: Filed, second: Filed) -> None:
    """Raise `DataError` unless both were measured by one protocol on the same files and classes."""
    ours, theirs = first.evaluation, second.evaluation
    names = [
        [image.name for result in one.classes.values() for image in result.images]
        for one in (ours, theirs)
    ]
    # The names draw the replicates: by others, of the same files, nothing would be paired.
    odd = next((pair for pair in zip(*names, strict=False) if pair[0] != pair[1]), ("", ""))
    said = (
        ("protocol", ours.protocol.name, theirs.protocol.name),
        ("classes", ", ".join(ours.classes), ", ".join(theirs.classes)),
        ("test images and masks, SHA-256", first.data_sha256, second.data_sha256),
        ("images, named from the data set's folder", *odd),
    )
    for what, one, other in said:
        if one != other:
            raise DataError(
                f"{second.path}: {what}: expected what {first.path} was measured with, {one}; got "
                f"{other}. Such numbers cannot be compared: evaluate both alike"
            )


def differences(first: Evaluation, second: Evaluation) -> list[Difference]:
    """Second - first of every metric that both have: of the mean, then class by class.

    The mean is over the classes where both have the metric.
    """
    paired = first.resampling is not None and first.resampling == second.resampling
    found = [
        item
        for metric in METRICS
        if (item := _mean(first, second, metric, paired=paired)) is not None
    ]
    for name in first.classes:
        both = (first.classes[name], second.classes[name])
        for metric in METRICS:
            values = [result.metrics[metric] for result in both]
            if values[0] is None or values[1] is None:
                continue
            sampled = _difference(*both, metric) if paired else None
            found.append(
                Difference(
                    class_name=name,
                    metric=metric,
                    first=values[0],
                    second=values[1],
                    interval=interval_of(sampled),
                )
            )
    return found


def verdict_changes(first: ClassResult, second: ClassResult) -> str:
    """How many images were judged otherwise, in words."""
    before = {image.name: image for image in first.images}
    counts = {"found": 0, "missed": 0, "flagged": 0, "passed": 0}
    for image in second.images:
        old = before.get(image.name)
        if old is not None and old.flagged != image.flagged:
            words = ("missed", "found") if image.defect else ("passed", "flagged")
            counts[words[image.flagged]] += 1
    if not any(counts.values()):
        return "no image is judged otherwise at the stored thresholds"
    return (
        f"at the stored thresholds now {counts['found']} more defects found, {counts['missed']} "
        f"missed; {counts['flagged']} more good images flagged, {counts['passed']} passed"
    )


def _mean(first: Evaluation, second: Evaluation, metric: str, *, paired: bool) -> Difference | None:
    both = [
        (one, second.classes[name])
        for name, one in first.classes.items()
        if one.metrics[metric] is not None and second.classes[name].metrics[metric] is not None
    ]
    if not both:
        return None
    parts = [_difference(*pair, metric) for pair in both] if paired else []
    known = [part for part in parts if part is not None]
    whole = mean_sampled(known) if paired and len(known) == len(both) else None
    return Difference(
        class_name=None,
        metric=metric,
        first=_average(one.metrics[metric] for one, _ in both),
        second=_average(two.metrics[metric] for _, two in both),
        interval=interval_of(whole),
    )


def _difference(first: ClassResult, second: ClassResult, metric: str) -> Sampled | None:
    ours, theirs = first.sampled.get(metric), second.sampled.get(metric)
    return None if ours is None or theirs is None else difference(theirs, ours)


def _average(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def _line(item: Difference) -> str:
    ends = "" if item.interval is None else _ends(item.interval)
    return (
        f"  {HEADINGS[item.metric]:8} {100 * item.first:5.1f} -> {100 * item.second:5.1f}  "
        f"{100 * (item.second - item.first):+5.1f}{ends}{' *' if item.clear else ''}"
    )


def _ends(interval: Interval) -> str:
    return f"  [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
