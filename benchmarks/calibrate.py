"""Rules for a threshold: how many good images each one flags, on made scores and on real ones.

    scripts/bench calibrate                               made scores, minutes on one core
    scripts/bench calibrate --run RUN [--data FOLDER]     real ones too

Every rule aims at, or is used for, 1 % of false alarms. RUN is a run folder that `mambaadv2 train`
wrote for images in the MVTec AD layout, which --data or the environment variable MAMBAADV2_DATA
names; its thresholds come from its held-out images, and test images only measure. Prints tables and
writes benchmarks/results/calibrate.json and docs/thresholds.svg.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks._calibrate_cases import (
    F1,
    OURS,
    OURS_SURE,
    RATE,
    RULES,
    SHAPES,
    SIGMA,
    SIZES,
    SURE,
    Array,
    drift,
    f1_threshold,
    leave_one_out,
    thresholds,
)
from benchmarks._context import DATA_HELP, RESULTS, ROOT, describe, find_data, markdown
from mambaadv2.calibrate import calibrate_classes, cross_guarantee
from mambaadv2.data.index import mvtec_records
from mambaadv2.errors import MambaADv2Error
from mambaadv2.files import write_atomically
from mambaadv2.predict import Predictor, load, predict_paths
from mambaadv2.report import line_chart

PLOT, DRAWN = ROOT / "docs" / "thresholds.svg", ("skewed", 500)  # shape, largest number of images
SHOWN = (20, 32, 99, 199, 500, 2000)

Rows = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]
"""Of `thresholds`, by shape and number of images."""


def made(sets: int) -> Rows:
    """Every rule on every shape and number of images."""
    return {
        name: {str(n): thresholds(shape, n, sets, seed=n) for n in SIZES}
        for name, shape in SHAPES.items()
    }


def made_table(rows: Rows) -> str:
    """False alarms on average / in the worst twentieth of calibration sets, and recall."""
    head = ["scores, rule", *(f"n = {n}" for n in SHOWN)]
    table = [head]
    for shape, by_size in rows.items():
        for rule in (*RULES, F1):
            cells = [
                f"{100 * row['false_alarms']:.2f} / "
                f"{100 * row['false_alarms_worst_twentieth']:.2f}; {100 * row['recall']:.0f}"
                for n in SHOWN
                for row in [by_size[str(n)][rule]]
            ]
            table.append([f"{shape}: {rule}", *cells])
    return markdown(table)


def chart(rows: Rows) -> str:
    """False alarms on average against the number of held-out images."""
    shape, most = DRAWN
    lines = {
        rule: [
            (float(n), 100 * rows[shape][str(n)][rule]["false_alarms"]) for n in SIZES if n <= most
        ]
        for rule in ("maximum", "mean + 3 sigma", "99 % quantile", F1, "ours")
    }
    return line_chart(
        lines,
        title=f"Good images flagged, {shape} scores, {100 * RATE:g} % wished",
        x_label="good images behind the threshold",
        y_label="% of good images",
    )


def real(predictor: Predictor, data: Path) -> dict[str, Any]:
    """By class: what each rule, fed with the run's held-out scores, does to the test images."""
    card = predictor.card
    records = mvtec_records(data, split="test", classes=predictor.classes)
    scores: dict[str, dict[bool, list[float]]] = {n: {False: [], True: []} for n in card.classes}
    wrong = 0
    paths = [record.path for record in records]
    predicted = predict_paths(predictor, paths)
    for record, (_, _, found, _) in zip(records, predicted, strict=True):
        # A good image that is taken for another class meets that class's threshold.
        wrong += found.class_name != record.class_name
        scores[found.class_name][record.defect].append(found.score)
    rows: dict[str, Any] = {}
    known = {name: list(card.kept_scores(name)) for name in card.classes}
    # As training does: classes of few images lean on the spread of the others.
    together = {
        OURS: calibrate_classes(known, rate=RATE),
        OURS_SURE: calibrate_classes(known, rate=RATE, confidence=SURE),
    }
    for name in card.classes:
        held = np.array(known[name])
        good, bad = (np.array(scores[name][defect]) for defect in (False, True))
        # One image has no standard deviation.
        limits = {
            rule: make(held) for rule, make in RULES.items() if len(held) > 1 or rule != SIGMA
        }
        limits |= {rule: ours[name].threshold for rule, ours in together.items()}
        if good.size and bad.size:
            limits[F1] = f1_threshold(good, bad)
        rows[name] = {
            "held_out": len(held),
            "test_good": len(good),
            "test_defect": len(bad),
            "p_values_of_test_good_uniform": _uniform(held, good),
            "rules": {rule: _measured(limit, good, bad) for rule, limit in limits.items()},
        }
    return {"images": len(paths), "taken_for_another_class": wrong, "classes": rows}


def _uniform(held: Array, good: Array) -> float | None:
    """P-value of Kolmogorov and Smirnov: do held-out and test good images score alike?"""
    return float(stats.ks_2samp(held, good).pvalue) if good.size else None


def _measured(limit: float, good: Array, bad: Array) -> dict[str, Any]:
    flagged = int((good > limit).sum())
    interval = stats.binomtest(flagged, len(good)).proportion_ci(0.95) if good.size else None
    return {
        "threshold": limit,
        "flagged_good": flagged,
        "found_defects": int((bad > limit).sum()),
        "false_alarms_95": None if interval is None else [interval.low, interval.high],
    }


def real_table(found: Mapping[str, Any]) -> str:
    rules = (*RULES, F1)
    table = [["class (held out; test good, defects)", *rules]]
    for name, row in found["classes"].items():
        cells = []
        for rule in rules:
            one = row["rules"].get(rule)
            if one is None or one["false_alarms_95"] is None:
                cells.append("-")
                continue
            low, high = (100 * end for end in one["false_alarms_95"])
            cells.append(f"{one['flagged_good']} [{low:.0f}, {high:.0f} %]; {one['found_defects']}")
        label = f"{name} ({row['held_out']}; {row['test_good']}, {row['test_defect']})"
        table.append([label, *cells])
    return markdown(table)


def leave_out_rows(sets: int) -> dict[str, dict[str, dict[str, float]]]:
    """Measured and proved shares, by number of images and rate."""
    return {
        str(n): {
            f"{rate:g}": {
                **leave_one_out(n, rate, sets),
                "proved for jackknife+": cross_guarantee(n, n, rate),
            }
            for rate in (0.05, 0.1)
        }
        for n in (20, 39, 79)
    }


def leave_out_table(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    names = ["own share", "jackknife", "jackknife+", "proved for jackknife+"]
    table = [["images, rate wished", *names]]
    for n, by_rate in rows.items():
        for rate, row in by_rate.items():
            label = f"{n}, {100 * float(rate):g} %"
            table.append([label, *(f"{100 * row[name]:.1f} %" for name in names)])
    return markdown(table)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="scripts/bench calibrate", description=__doc__)
    parser.add_argument("--run", type=Path, metavar="RUN", help="a run folder; without it: no real")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=DATA_HELP)
    parser.add_argument("--sets", type=int, default=1000, help="calibration sets of each case")
    parser.add_argument("--out", type=Path, default=RESULTS / "calibrate.json")
    parser.add_argument("--plot", type=Path, default=PLOT)
    args = parser.parse_args(arguments)
    try:
        found = None
        if args.run is not None:
            found = real(load(args.run, device="cpu"), find_data(args.data))
    except MambaADv2Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = made(args.sets)
    print(
        "Good images flagged, in %: on average / in the worst twentieth of sets; defects found, %"
    )
    print(made_table(rows))
    left_out = leave_out_rows(5 * args.sets)
    print("\nGood images with p <= rate, whitening and p-values by the same images")
    print(leave_out_table(left_out))
    watched = drift(sets=max(2, args.sets // 4), length=1000, delta=0.05)
    print(f"\nDrift: {json.dumps(watched, indent=1)}")
    if found is None:
        print("\nreal scores: skipped, no --run")
    else:
        print("\nReal: good images flagged [95 % interval]; defects found")
        print(real_table(found))
    content = {
        **describe("calibrate", arguments),
        "rate": RATE,
        "sets": args.sets,
        "made": rows,
        "leave_one_out": left_out,
        "drift": watched,
        "real": found,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out, (json.dumps(content, indent=1) + "\n").encode())
    args.plot.write_text(chart(rows) + "\n", encoding="utf-8")
    print(f"written: {args.out}, {args.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
