"""An evaluation as a JSON file, and back: numbers, every image, and what intervals are made of."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambaadv2.errors import DataError, Problem
from mambaadv2.files import EVALUATION
from mambaadv2.metrics import Resampling, Sampled, mean_sampled
from mambaadv2.protocols import PROTOCOLS
from mambaadv2.results import METRICS, PIECES, SEVEN, ClassResult, Evaluation, ImageResult

SCHEMA = 2
"""1 had neither intervals nor images and cannot be read."""

COLUMNS = (
    *("name", "kind", "defect", "score", "threshold", "flagged", "found_class", "p_value"),
    *("ranked", "sample", "defect_pixels", "pixels"),
)
"""Of `ImageResult`, in the order of the file."""

_KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "kind", "found_class"), (str,)),
    **dict.fromkeys(("defect", "flagged"), (bool,)),
    **dict.fromkeys(("score", "threshold"), (int, float)),
    **dict.fromkeys(("p_value", "ranked"), (int, float, type(None))),
    **dict.fromkeys(("defect_pixels", "pixels"), (int, type(None))),
    "sample": (str, type(None)),
}
REPLACED = "thresholds_replaced"
"""True in the file of a run whose thresholds were replaced since."""

_RESAMPLING = ("seed", "replicates", "groups")
_FLOAT = "<f8"


@dataclass(frozen=True, slots=True)
class Filed:
    """An evaluation that was read; its classes have no curves and no gallery."""

    path: Path
    evaluation: Evaluation
    data_sha256: str
    replaced: bool = False
    """Whether thresholds of the run were replaced since: verdicts and p-values are of the old."""


def evaluation_text(
    evaluation: Evaluation, data_sha256: str, more: Mapping[str, object] | None = None
) -> str:
    """The file's content. more: further fields, at the top.

    Numbers are 0..1, null where undefined. "images" has a row of `COLUMNS` per image, a line each;
    "replicates" has per class and metric base64 of little-endian float64, NaN where undefined.
    """
    content: dict[str, object] = {
        "schema": SCHEMA,
        **(more or {}),
        "data_sha256": data_sha256,
        "seconds": round(evaluation.seconds, 3),
        **evaluation.content(),
        "columns": COLUMNS,
        "images": {
            name: [[getattr(image, column) for column in COLUMNS] for image in result.images]
            for name, result in evaluation.classes.items()
        },
        "replicates": {
            name: {
                metric: {"drawn": _packed(found.replicates), "left_out": _packed(found.left_out)}
                for metric, found in result.sampled.items()
                if metric != "mad"
            }
            for name, result in evaluation.classes.items()
        },
    }
    return laid_out(content)


def laid_out(content: Mapping[str, Any], *, allow_nan: bool = False) -> str:
    """The JSON of an evaluation as text for people: indented, but a line for each image.

    allow_nan: as of `json.dumps`; for what was read and need not be an evaluation at all.
    """
    lines: list[str] = []

    def line(values: object) -> str:
        lines.append(json.dumps(values, allow_nan=allow_nan))
        return f"\0{len(lines) - 1}\0"

    shown = dict(content)
    if "columns" in shown:
        shown["columns"] = line(shown["columns"])
    if isinstance(images := shown.get("images"), dict):
        shown["images"] = {
            name: [line(row) for row in rows] if isinstance(rows, list) else rows
            for name, rows in images.items()
        }
    parts = json.dumps(shown, indent=2, allow_nan=allow_nan).split('"\\u0000')
    text = parts[0] + "".join(
        lines[int(number)] + rest
        for number, _, rest in (part.partition('\\u0000"') for part in parts[1:])
    )
    return text + "\n"


def read_evaluation(path: Path | str) -> Filed:
    """Read what `mambaadv2 evaluate --json` wrote, or the evaluation.json of a run folder.

    Raises `DataError` naming the file and the field for anything else.
    """
    file = Path(path)
    if file.is_dir():
        file = file / EVALUATION
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{file}: expected the JSON of an evaluation, it cannot be read ({error}); make it "
            "with 'mambaadv2 evaluate RUN DATA --json FILE'"
        ) from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise DataError(
            f"{file}: schema: expected {SCHEMA}, got {schema!r}; evaluate again with this version"
        )
    try:
        replaced = content.get(REPLACED) is True
        return Filed(file, _evaluation(content), str(content["data_sha256"]), replaced)
    except (
        *(AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError),
        ValueError,
    ) as error:
        raise DataError(
            f"{file}: expected the JSON of an evaluation, it lacks or has wrong: {error}; it was "
            "changed or is damaged, evaluate again"
        ) from error


def _evaluation(content: Mapping[str, Any]) -> Evaluation:
    protocol = PROTOCOLS[content["protocol"]]
    if content["rules"] != protocol.rules():
        raise ValueError(
            f"rules: protocol {protocol.name} of another version, {content['rules']!r}"
        )
    said = content["intervals"]
    resampling = None
    if said is not None:
        resampling = Resampling(**{name: int(said[name]) for name in _RESAMPLING})
    if not content["classes"]:
        raise ValueError("classes: expected one or more, found none")
    return Evaluation(
        classes={
            name: _class(name, values, content, resampling)
            for name, values in content["classes"].items()
        },
        seconds=_number("seconds", content["seconds"]),
        skipped=tuple(Problem(Path(p["path"]), p["error"]) for p in content["skipped"]),
        protocol=protocol,
        resampling=resampling,
    )


def _class(
    name: str, values: Mapping[str, Any], content: Mapping[str, Any], drawn: Resampling | None
) -> ClassResult:
    metrics = {metric: _metric(name, metric, values[metric]) for metric in METRICS}
    sampled: dict[str, Sampled] = {}
    for metric, packed in content["replicates"].get(name, {}).items():
        value = metrics[metric]
        if value is None or drawn is None:
            raise ValueError(f"replicates: {name} {metric} has some and no value")
        sizes = {"drawn": drawn.replicates, "left_out": drawn.groups}
        parts = (_unpacked(f"{name} {metric}", packed[part], sizes[part]) for part in sizes)
        sampled[metric] = Sampled(value, *parts)
    if all(metric in sampled for metric in SEVEN):
        sampled["mad"] = mean_sampled([sampled[metric] for metric in SEVEN])
    pieces = values.get("samples", {})
    return ClassResult(
        metrics=metrics,
        sampled=sampled,
        samples={key: _number(f"samples: {key}", pieces[key]) for key in ("n", *PIECES) if pieces},
        n_good=_count(f"{name} n_good", values["n_good"]),
        n_defect=_count(f"{name} n_defect", values["n_defect"]),
        notes=tuple(map(str, content["notes"].get(name, ()))),
        images=tuple(
            _image(name, dict(zip(content["columns"], row, strict=True)))
            for row in content["images"][name]
        ),
        grid_bound=values.get("grid_bound"),
    )


def _image(class_name: str, row: dict[str, Any]) -> ImageResult:
    where = f"images: {class_name} {row.get('name')!r}"
    for column, kinds in _KINDS.items():
        value = row[column]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"{where}: {column}: got {value!r}")
    for column in ("score", "threshold", "p_value", "ranked"):
        if row[column] is not None:
            _number(f"{where}: {column}", row[column])
    if row["threshold"] <= 0:
        raise ValueError(f"{where}: threshold: expected a number above 0, got {row['threshold']}")
    return ImageResult(**row)


def _metric(name: str, metric: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"classes: {name} {metric}: expected 0..1 or null, got {value!r}")
    return float(value)


def _number(what: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{what}: expected a number, got {value!r}")
    return float(value)


def _count(what: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"classes: {what}: expected a whole number from 0 up, got {value!r}")
    return value


def _packed(values: NDArray[np.float64]) -> str:
    return base64.b64encode(values.astype(_FLOAT).tobytes()).decode("ascii")


def _unpacked(what: str, text: str, size: int) -> NDArray[np.float64]:
    values = np.frombuffer(base64.b64decode(text, validate=True), dtype=_FLOAT).astype(np.float64)
    if values.shape != (size,):
        raise ValueError(f"replicates: {what}: expected {size} numbers, got {values.size}")
    if not (np.isnan(values) | ((values >= 0) & (values <= 1))).all():
        raise ValueError(f"replicates: {what}: expected numbers of 0..1")
    return values
