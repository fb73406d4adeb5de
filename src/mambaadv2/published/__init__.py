"""Published numbers of one model for all classes, to stand beside one's own; with their sources.

tables.csv has a row per method, data set and length of training: percent, empty where not
published; `protocol` is the rules they were measured by, as of `mambaadv2.protocols`, "unstated"
where they are not known. Sources differ in preprocessing and training, as their papers say.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files

from mambaadv2.errors import ConfigError, DataError
from mambaadv2.evaluation_file import Filed
from mambaadv2.files import EVALUATION
from mambaadv2.names import did_you_mean
from mambaadv2.results import HEADINGS, LEVEL, METRICS, SEVEN, aligned, interval_cells

DATASETS = {
    "mvtec": ("MVTec AD", 15),
    "mvtec-3d": ("MVTec 3D", 10),
    "mvtec-loco": ("MVTec LOCO", 5),
    "visa": ("VisA", 12),
    "real-iad": ("Real-IAD", 30),
    "uni-medical": ("Uni-Medical", 3),
    "coco-ad": ("COCO-AD", 4),
    "btad": ("BTAD", 3),
    "mpdd": ("MPDD", 6),
    "mad-real": ("MAD_Real", 10),
    "mad-sim": ("MAD_Sim", 20),
}
"""Name for the command -> name in the tables, and the number of classes (splits of COCO-AD)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One row of a published table."""

    dataset: str
    method: str
    epochs: int | None
    """None where not stated."""
    metrics: dict[str, float | None]
    """By the names of `METRICS`, in percent."""
    protocol: str
    source: str

    @property
    def own_mean(self) -> float | None:
        """The mean of the seven metrics; None where one was not published."""
        values = [value for metric in SEVEN if (value := self.metrics[metric]) is not None]
        return sum(values) / 7 if len(values) == 7 else None

    @property
    def odd_mean(self) -> bool:
        """Whether the published mAD is not the mean of the published seven, rounding aside."""
        mean, said = self.own_mean, self.metrics["mad"]
        return mean is not None and said is not None and abs(mean - said) > 0.15


def published(dataset: str | None = None, protocol: str | None = None) -> list[Published]:
    """The rows of one data set (a key of `DATASETS`) and protocol, or all; the best first.

    The order is by the mean of the seven metrics, by the published one where they are not all
    there: of a few rows the two differ (`Published.odd_mean`).

    Raises `ConfigError` for a data set without any.
    """
    wanted = None if dataset is None else _table_name(dataset)
    text = files(__name__).joinpath("tables.csv").read_text(encoding="utf-8")
    rows = [_row(row) for row in csv.DictReader(text.splitlines())]
    kept = [
        row for row in rows if wanted in (None, row.dataset) and protocol in (None, row.protocol)
    ]
    return sorted(kept, key=lambda row: -(row.own_mean or row.metrics["mad"] or 0.0))


def results_table(dataset: str, own: Filed | None = None, protocol: str | None = None) -> str:
    """Published rows as text, protocol by protocol, one's own run on top of those of its own.

    protocol: only these; with a run its own, and no other. Raises `ConfigError` for a data set
    without published numbers, and `DataError` where the run was measured by other rules than they.
    """
    name = _table_name(dataset)
    rows = published(dataset)
    there = list(dict.fromkeys(row.protocol for row in sorted(rows, key=lambda r: r.protocol)))
    if protocol is not None and protocol not in there:
        raise ConfigError(
            f"protocol: no published numbers of {name} by {protocol!r}, only by {', '.join(there)}"
        )
    if own is not None:
        measured = own.evaluation.protocol.name
        if protocol not in (None, measured):
            raise DataError(
                f"{own.path}: was measured by protocol {measured}, not {protocol}; numbers of two "
                "protocols cannot stand beside each other: evaluate with --protocol "
                f"{protocol}, or leave --protocol out"
            )
        if measured not in there:
            asked = next((p for p in there if p != "unstated"), there[0])
            raise DataError(
                f"{own.path}: was measured by protocol {measured}, the published numbers of {name} "
                f"by {', '.join(there)}; they cannot stand beside each other: evaluate with "
                f"--protocol {asked}"
            )
        protocol = measured
    blocks = [
        _block(name, one, [row for row in rows if row.protocol == one], own)
        for one in there
        if protocol in (None, one)
    ]
    return "\n\n".join(blocks)


def _block(name: str, protocol: str, rows: list[Published], own: Filed | None) -> str:
    sources = list(dict.fromkeys(row.source for row in rows))
    table = [["method", "epochs", *HEADINGS.values(), "source"]]
    notes = []
    if own is not None:
        count = next(number for table_name, number in DATASETS.values() if table_name == name)
        table += _own_rows(own, count)
        notes = _own_notes(name, own, count)
    for row in rows:
        values = (row.metrics[metric] for metric in METRICS)
        cells = ["-" if value is None else f"{value:.1f}" for value in values]
        epochs = "-" if row.epochs is None else str(row.epochs)
        table.append([row.method, epochs, *cells, f"[{sources.index(row.source) + 1}]"])
    lines = [f"{name}, one model for all classes, protocol {protocol}, in percent", ""]
    lines += aligned(table)
    notes += [
        f"{row.method}, {row.epochs} epochs: mAD as published; the mean of its seven is "
        f"{row.own_mean:.1f}."
        for row in rows
        if row.odd_mean
    ]
    lines += ["", *(f"[{number}] {source}" for number, source in enumerate(sources, start=1))]
    return "\n".join((*lines, *notes))


def _own_rows(own: Filed, count: int) -> list[list[str]]:
    evaluation = own.evaluation
    means = (evaluation.mean[metric] for metric in METRICS)
    cells = ("-" if value is None else f"{100 * value:.1f}" for value in means)
    have = f"{len(evaluation.classes)} of {count} classes"
    rows = [[f"this run: {_short(own)}, {have}", "-", *cells, "-"]]
    if evaluation.resampling is not None:
        rows.append(["", "", *interval_cells(evaluation.interval), ""])
    return rows


def _own_notes(name: str, own: Filed, count: int) -> list[str]:
    have = len(own.evaluation.classes)
    notes = [f"This run: {own.path}"]
    if own.evaluation.resampling is not None:
        notes[0] += f"; below its numbers their {100 * LEVEL:.0f} % intervals over images"
    if have != count:
        notes.append(f"Not comparable as a whole: classes of this run: {have}, of {name}: {count}.")
    return notes


def _short(own: Filed) -> str:
    return own.path.parent.name if own.path.name == EVALUATION else own.path.stem


def _table_name(dataset: str) -> str:
    if dataset not in DATASETS:
        hint = did_you_mean(str(dataset).lower(), DATASETS)
        raise ConfigError(f"dataset: expected {', '.join(DATASETS)}, got {dataset!r}{hint}")
    return DATASETS[dataset][0]


def _row(row: dict[str, str]) -> Published:
    return Published(
        dataset=row["dataset"],
        method=row["method"],
        epochs=int(row["epochs"]) if row["epochs"] else None,
        metrics={m: float(row[m]) if row[m] else None for m in METRICS},
        protocol=row["protocol"],
        source=row["source"],
    )
