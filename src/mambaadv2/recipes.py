"""The demo: draw a data set, train, test and write a page, with nothing but the package."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path

from mambaadv2.data.synthetic import CLASSES, generate
from mambaadv2.errors import DataError
from mambaadv2.evaluate import evaluate
from mambaadv2.files import read_json_object
from mambaadv2.predict import predict_to_folder
from mambaadv2.train import train

DEMO_FOLDER = "mambaadv2-demo"
DEMO_MINUTES = 1.5
DEMO_DATA = {"seed": 0, "size": 128, "train": 32, "good": 12, "defect": 6}  # for `generate`
MARKER = "generated.json"  # in a data set that is the demo's own


def demo(out: str | os.PathLike[str] | None = None, *, minutes: float = DEMO_MINUTES) -> Path:
    """Train, test and show a model on generated images; returns the page.

    Command: `mambaadv2 demo`. Hardware: any CPU. Time: `minutes` for the training and about half a
    minute around it on two cores. No download: data are drawn, the encoder's weights are packaged.

    Writes into `out` (default ./mambaadv2-demo): data/ (the images and exact masks), run/ (the
    model), results.json, predictions/ (heat maps of all test images) and index.html (the report of
    `evaluate`). A second call uses data/ again. Raises `DataError` before any work when data/ is
    not the demo's own.
    """
    folder = Path(DEMO_FOLDER if out is None else out)
    data, page = folder / "data", folder / "index.html"
    _draw(data)
    run = train(data, folder / "run", minutes=minutes)
    result = evaluate(
        run,
        data,
        json_path=folder / "results.json",
        report=page,
        title="mambaadv2 demo: one model, four products",
        command=shlex.join(("mambaadv2", "demo", *(() if out is None else ("--out", str(out))))),
    )
    print(result.table())
    tests = [str(data / name / "test") for name in CLASSES]
    predict_to_folder(run, tests, folder / "predictions")
    return page


def _draw(data: Path) -> None:
    """Draw the data set unless it is there, whole and with the same parameters."""
    marker: dict[str, object] = {"generator": "mambaadv2.data.synthetic.generate", **DEMO_DATA}
    if data.exists():
        if read_json_object(data / MARKER) != marker:
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
