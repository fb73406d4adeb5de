"""The demo: draw a data set, train, test and write a page, with nothing but the package."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

from mambaadv2.data.index import Record, mvtec_records
from mambaadv2.data.synthetic import CLASSES, generate
from mambaadv2.errors import DataError
from mambaadv2.evaluate import METRICS, Evaluation, evaluate
from mambaadv2.image import read_mask
from mambaadv2.predict import Predictor, load, predict_paths, predict_to_folder
from mambaadv2.report import Figure, TableRow, write_demo_page
from mambaadv2.train import train

DEMO_FOLDER = "mambaadv2-demo"
DEMO_MINUTES = 1.5
DEMO_GOOD, DEMO_PER_TYPE = 2, 1  # pictures per class in the gallery
DEMO_DATA = {"seed": 0, "size": 128, "train": 32, "good": 12, "defect": 6}  # for `generate`
MARKER = "generated.json"  # in a data set that is the demo's own


def demo(out: str | os.PathLike[str] | None = None, *, minutes: float = DEMO_MINUTES) -> Path:
    """Train, test and show a model on generated images; returns the page.

    Command: `mambaadv2 demo`. Hardware: any CPU. Time: `minutes` for the training and about half a
    minute around it on two cores. No download: data are drawn, the encoder's weights are packaged.

    Writes into `out` (default ./mambaadv2-demo): data/ (the images and exact masks), run/ (the
    model), results.json, predictions/ (heat maps of all test images) and index.html. A second call
    uses data/ again. Raises `DataError` before any work when data/ is not the demo's own.
    """
    start = time.monotonic()
    folder = Path(DEMO_FOLDER if out is None else out)
    data = folder / "data"
    _draw(data)
    run = train(data, folder / "run", minutes=minutes)
    predictor = load(run)
    result = evaluate(predictor, data, json_path=folder / "results.json")
    print(result.table())
    tests = [str(data / name / "test") for name in CLASSES]
    predict_to_folder(run, tests, folder / "predictions")
    page = folder / "index.html"
    command = "mambaadv2 demo" if out is None else f"mambaadv2 demo --out {out}"
    write_demo_page(
        page,
        title="mambaadv2 demo: one model, four products",
        command=command,
        seconds=time.monotonic() - start,
        table_rows=_rows(result),
        figures=_figures(predictor, mvtec_records(data, split="test")),
        loss_svg=(run / "loss.svg").read_text(encoding="utf-8"),
        colour_range=(predictor.colour_scale.low, predictor.colour_scale.high),
        notes=_notes(run),
    )
    return page


def _draw(data: Path) -> None:
    """Draw the data set unless it is there, whole and with the same parameters."""
    marker: dict[str, object] = {"generator": "mambaadv2.data.synthetic.generate", **DEMO_DATA}
    if data.exists():
        if _read_marker(data / MARKER) != marker:
            raise DataError(
                f"{data}: expected the demo's own data set, whose {MARKER} says {marker}; "
                "it is something else and stays as it is: choose another folder with --out, "
                "or remove it if an earlier demo drew it"
            )
        return
    unfinished = data.with_name(f".{data.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    generate(unfinished, **DEMO_DATA)
    (unfinished / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    unfinished.rename(data)


def _read_marker(path: Path) -> object:
    """What the marker says; None where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _rows(result: Evaluation) -> list[TableRow]:
    rows = [
        TableRow(name=name, metrics=c.metrics, n_good=c.n_good, n_defect=c.n_defect)
        for name, c in result.classes.items()
    ]
    return [*rows, TableRow(name="mean", metrics={m: result.mean[m] for m in METRICS})]


def _figures(predictor: Predictor, records: tuple[Record, ...]) -> list[Figure]:
    """The first good images and the first of every defect type, by class."""
    chosen: list[Record] = []
    seen: dict[tuple[str, str], int] = {}
    for record in records:
        kind = (record.class_name, record.defect_type)
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= (DEMO_PER_TYPE if record.defect else DEMO_GOOD):
            chosen.append(record)
    outcomes = predict_paths(predictor, [record.path for record in chosen])
    return [
        Figure(
            class_name=record.class_name,
            label=record.defect_type,
            image=image,
            map=prediction.map,
            mask=None if record.mask is None else read_mask(record.mask),
            score=prediction.score,
            threshold=prediction.threshold,
            defect=prediction.defect,
        )
        for record, (_, image, prediction, _) in zip(chosen, outcomes, strict=True)
    ]


def _notes(run: Path) -> list[str]:
    training = json.loads((run / "model.json").read_text(encoding="utf-8"))["training"]
    return [
        f"Trained for {training['steps']} steps on {sum(training['images'].values())} good images; "
        "thresholds come from held-out good images, never from test images.",
    ]
