"""The whole way on real photographs, where there are any; see CONTRIBUTING.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from mambaadv2.data.index import mvtec_records
from mambaadv2.evaluate import evaluate
from mambaadv2.predict import load
from mambaadv2.train import train


@pytest.mark.real
def test_every_class_is_listed_with_its_masks(real_data: Path) -> None:
    records = mvtec_records(real_data)
    assert {"alien", "cookie", "hazelnut", "screw"} <= {record.class_name for record in records}
    masked = {r.class_name for r in records if r.defect and r.mask is not None}
    assert "screw" in masked
    assert "alien" not in masked


@pytest.mark.real
@pytest.mark.slow
def test_a_short_training_finds_paint_on_hazelnuts(real_data: Path, tmp_path: Path) -> None:
    # 28 good images, a few seconds: far from what the default budget reaches.
    run = train(
        real_data, tmp_path, epochs=10, device="cpu", limit_classes=["hazelnut"], progress=False
    )
    predictor = load(run, device="cpu")
    result = evaluate(predictor, real_data, classes=["hazelnut"], progress=False)
    metrics = result.classes["hazelnut"].metrics
    assert metrics["image_auroc"] is not None
    assert metrics["image_auroc"] > 0.9
    assert metrics["pixel_auroc"] is not None
    assert metrics["pixel_auroc"] > 0.95
