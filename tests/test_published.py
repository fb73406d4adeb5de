"""The published tables: shipped whole, and never beside numbers of other rules."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
from pathlib import Path

import pytest

from mambaadv2 import published as tables
from mambaadv2.errors import ConfigError, DataError
from mambaadv2.evaluation_file import Filed
from mambaadv2.metrics import Resampling
from mambaadv2.protocols import ADER, EXACT, PROTOCOLS
from mambaadv2.published import DATASETS, published, results_table
from mambaadv2.results import METRICS, ClassResult, Evaluation

SHA256 = "3e0c52cfb2c3fb03e6d415b39cc57b084084c95936fb1677d013d0d391a9c1e6"


def own(protocol: object = ADER, classes: int = 15) -> Filed:
    result = ClassResult(metrics=dict.fromkeys(METRICS, 0.5), n_good=1, n_defect=1)
    evaluation = Evaluation(
        classes={f"class {n}": result for n in range(classes)},
        seconds=1.0,
        protocol=protocol,  # type: ignore[arg-type]
    )
    return Filed(Path("runs/mine/evaluation.json"), evaluation, "aa")


def test_every_row_has_a_source_a_protocol_and_percents() -> None:
    rows = published()
    assert len(rows) > 300
    tables = {table for table, _ in DATASETS.values()}
    for row in rows:
        assert row.dataset in tables
        assert row.source
        assert row.protocol in (*PROTOCOLS, "unstated")
        assert set(row.metrics) == set(METRICS)
        assert all(value is None or 0 < value <= 100 for value in row.metrics.values())
    assert {row.dataset for row in rows} == tables


def test_the_seven_give_the_mean_but_for_rows_that_are_marked() -> None:
    odd = [row for row in published() if row.odd_mean]
    # PatchCore at 300 epochs, which does not train: the benchmark's own means are off there.
    assert {(row.method, row.epochs) for row in odd} == {("PatchCore, CVPR'22", 300)}
    assert len(odd) == 6


def test_no_row_has_been_touched() -> None:
    """Checked once against its sources; whoever changes a number says so here."""
    text = (Path(tables.__file__).parent / "tables.csv").read_bytes()
    assert hashlib.sha256(text).hexdigest() == SHA256


def test_mamba_ad_is_as_printed() -> None:
    [row] = [
        r for r in published("mvtec", "ader") if r.method == "MambaAD" and "NeurIPS" in r.source
    ]
    assert list(row.metrics.values()) == [98.6, 99.6, 97.8, 97.7, 56.3, 59.2, 93.1, 86.0, None]
    assert row.epochs is None


@pytest.mark.skipif("MAMBAADV2_DATA" not in os.environ, reason="MAMBAADV2_DATA is not set")
def test_the_benchmark_is_copied_without_a_slip() -> None:
    path = Path(os.environ["MAMBAADV2_DATA"]).parent / "design" / "ader_benchmark.csv"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    ours = {
        (row.dataset, row.method, row.epochs): row.metrics
        for row in published()
        if row.source.startswith("Zhang")
    }
    assert len(ours) == len(rows)
    for row in rows:
        found = ours[row["dataset"], row["method"], int(row["epochs"])]
        for metric in METRICS:
            text = row["pixel_miou_max" if metric == "pixel_iou_max" else metric]
            assert found[metric] == (float(text) if text else None)


def test_one_s_own_run_stands_on_top_of_its_protocol_alone() -> None:
    text = results_table("mvtec", own())
    lines = text.splitlines()
    assert lines[0] == "MVTec AD, one model for all classes, protocol ader, in percent"
    assert lines[3].startswith("this run: mine, 15 of 15 classes")
    assert "dinomaly" not in text
    assert "Not comparable" not in text
    assert "the mean of its seven is 87.2" in text
    text = results_table("mvtec", own(classes=1))
    assert "classes of this run: 1, of MVTec AD: 15" in text
    assert "intervals" not in text
    drawn = dataclasses.replace(own().evaluation, resampling=Resampling())
    text = results_table("mvtec", dataclasses.replace(own(), evaluation=drawn))
    assert "below its numbers their 95 % intervals over images" in text
    assert text.splitlines()[4].split() == ["-"] * 9


def test_mixing_is_refused() -> None:
    with pytest.raises(DataError, match=r"evaluation\.json: .*exact, .*--protocol ader"):
        results_table("mvtec", own(EXACT))
    with pytest.raises(DataError, match=r"by protocol ader, not dinomaly; .*leave --protocol out"):
        results_table("mvtec", own(ADER), "dinomaly")
    for run in (None, own(ADER)):
        with pytest.raises(ConfigError, match="no published numbers of BTAD by 'dinomaly'"):
            results_table("btad", run, "dinomaly")
    with pytest.raises(ConfigError, match="did you mean 'visa'"):
        results_table("vista")


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_data_set_prints(dataset: str) -> None:
    text = results_table(dataset)
    assert DATASETS[dataset][0] in text
    assert "[1] " in text
