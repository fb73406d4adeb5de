"""A model that knows the truth, measured on layouts whose masks are out of the ordinary."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from tests.data_layouts.trees import TREES

from mambaadv2 import evaluate
from mambaadv2.data.index import list_records
from mambaadv2.data.verify import read_masks
from mambaadv2.predict import Prediction


class Oracle:
    """Answers with the union of an image's masks, in the order of the test images."""

    def __init__(self, root: Path) -> None:
        self.records = list(list_records(root, split="test").records)
        self.classes = tuple({record.class_name for record in self.records})

    def predict(self, images: Iterable[np.ndarray]) -> list[Prediction]:
        found = []
        for image in images:
            record = self.records.pop(0)
            truth = read_masks(record)
            mask = np.zeros(image.shape[:2], np.bool_) if truth is None else truth
            found.append(
                Prediction(
                    map=mask.astype(np.float32),
                    score=float(record.defect),
                    threshold=0.5,
                    defect=record.defect,
                    class_name=record.class_name,
                )
            )
        return found


@pytest.mark.parametrize(
    "layout", ["mvtec-loco", "mvtec-3d", "lookout", "kolektor-sdd2", "real-iad"]
)
def test_the_truth_is_measured_as_perfect(layout: str, tmp_path: Path) -> None:
    data, report = tmp_path / "data", tmp_path / "report.html"
    TREES[layout](data)
    found = evaluate(Oracle(data), data, layout=layout, report=report, progress=False)
    for result in found.classes.values():
        assert result.metrics["image_auroc"] == 1.0
        assert result.metrics["pixel_ap"] == 1.0
        assert result.metrics["pixel_aupro"] == 1.0
    assert f"layout='{layout}'" in report.read_text().replace("&#x27;", "'").replace("&#39;", "'")
