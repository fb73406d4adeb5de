"""Tables of the ablation: mean and spread over seeds, by variant."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks._context import markdown

ENOUGH_EPOCHS = 100
METRICS = {
    "image AUROC": "image_auroc",
    "pixel AUROC": "pixel_auroc",
    "pixel AP": "pixel_ap",
    "pixel AUPRO": "pixel_aupro",
}
"""Headings and names in the JSON of an evaluation."""

Line = dict[str, Any]
"""One training, as a parsed line of the results file; `ablate.run_job` makes it."""
Getter = Callable[[Line], float | None]


def report(lines: Sequence[Line], score: str) -> str:
    """Quality, difference to the default, classes, learning and cost, as Markdown tables.

    lines: at least one; variants in the order of the tables. score: the preset's.
    """
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line["variant"], []).append(line)
    kinds = sorted(lines[0]["scores"], key=lambda kind: kind != score)
    classes = list(lines[0]["scores"][score]["classes"])
    quality = {
        f"{kind} {label}": _metric(kind, metric)
        for kind in kinds
        for label, metric in METRICS.items()
    }
    by_class = {
        f"{name} {label}": _metric(score, metric, name)
        for name in classes
        for label, metric in METRICS.items()
    }
    shares = {f"loss at {float(share):.0%}": _loss(share) for share in lines[0]["loss"]}
    seeds = sorted({line["seed"] for line in lines})
    parts = [
        f"Percent; mean ± standard deviation over seeds {', '.join(map(str, seeds))}; "
        f"{lines[0]['steps']} steps each",
        _table(groups, quality, percent),
    ]
    if "default" in groups and len(groups) > 1:
        base = {line["seed"]: line for line in groups["default"]}
        differences = {label: _difference(get, base) for label, get in quality.items()}
        others = {name: group for name, group in groups.items() if name != "default"}
        parts += [
            "Percentage points above the default of the same seed",
            _table(others, differences, lambda values: percent(values, signed=True)),
        ]
    parts += [
        f"By class, score {score}",
        _table(groups, by_class, percent),
        "Learning and cost",
        _table(
            groups,
            {
                **shares,
                "seconds": lambda line: line["seconds"],
                "images/s": lambda line: line["images_per_second"],
                "1000 parameters": lambda line: line["parameters"] / 1000,
            },
            _number,
        ),
    ]
    epochs = min(line["epochs"] for line in lines)
    if epochs < ENOUGH_EPOCHS:
        parts.append(
            f"under-trained: {epochs:.1f} epochs, fewer than {ENOUGH_EPOCHS}; "
            "differences may shrink, grow or turn with more training"
        )
    return "\n\n".join(parts)


def _metric(score: str, metric: str, class_name: str | None = None) -> Getter:
    def get(line: Line) -> float | None:
        found = line["scores"][score]
        value = (found["mean"] if class_name is None else found["classes"][class_name])[metric]
        return None if value is None else float(value)

    return get


def _loss(share: str) -> Getter:
    return lambda line: float(line["loss"][share])


def _difference(get: Getter, base: Mapping[int, Line]) -> Getter:
    def difference(line: Line) -> float | None:
        mine, default = get(line), get(base[line["seed"]])
        return None if mine is None or default is None else mine - default

    return difference


def _table(
    groups: Mapping[str, Sequence[Line]],
    columns: Mapping[str, Getter],
    show: Callable[[Sequence[float | None]], str],
) -> str:
    """One row per group; a column without any value, as for a class without masks, is left out."""
    cells = {
        heading: [show([get(line) for line in group]) for group in groups.values()]
        for heading, get in columns.items()
    }
    known = {heading: column for heading, column in cells.items() if set(column) != {"-"}}
    return markdown([["variant", *known], *zip(groups, *known.values(), strict=True)])


def percent(values: Sequence[float | None], *, signed: bool = False) -> str:
    return _spread([None if v is None else 100 * v for v in values], ".2f", "+" if signed else "")


def _number(values: Sequence[float | None]) -> str:
    return _spread(values, ".4g")


def _spread(values: Sequence[float | None], form: str, sign: str = "") -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "-"
    text = format(statistics.fmean(known), sign + form)
    return text if len(known) == 1 else f"{text} ± {format(statistics.stdev(known), form)}"
