"""What can be tested of `scripts/bench gpu` without a GPU: its counts, its peers, its refusals."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import _gpu_network, gpu
from benchmarks._scan_case import (
    DECODER,
    Case,
    Shape,
    errors,
    failures,
    in_float64,
    make_case,
    with_batch,
)
from benchmarks._scan_costs import Cost, Peaks, kernel_costs
from benchmarks._scan_peers import Contender, mamba3, peers, simple_gla
from mambaadv2.scan.reference import reference_scan
from mambaadv2.scan.triton_plan import Plan

ROOT = Path(__file__).resolve().parents[1]
SMALL = Shape(3, 4, H=2, K=4, P=8, N=8, S=2, b=2)


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "no CUDA device" in line


def test_no_speed_is_reported_when_a_check_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*arguments: object) -> object:
        raise AssertionError("something was timed")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "NVIDIA Test")
    monkeypatch.setattr(gpu, "why_not", lambda device: None)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "describe", lambda name, arguments: {"command": name})
    monkeypatch.setattr(gpu, "check", lambda shapes, device: ([], ["64^2: dA 1e-02 > 1e-05"]))
    for name in ("measure_peaks", "time_scans", "kernel_limits", "networks"):
        monkeypatch.setattr(gpu, name, never)
    assert gpu.main([]) == 1
    assert "dA 1e-02" in capsys.readouterr().err
    written = json.loads((tmp_path / "gpu-nvidia-test.json").read_text(encoding="utf-8"))
    assert set(written) == {"command", "device", "checks"}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.slow
def test_the_checks_pass_in_the_interpreter() -> None:
    code = (
        "import json; from benchmarks import gpu; from benchmarks._scan_case import Shape\n"
        "rows, wrong = gpu.check({'small': Shape(4, 9, H=1, K=2, P=8, N=8, S=2)}, 'cpu')\n"
        "print(json.dumps([rows, wrong]))"
    )
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    rows, wrong = json.loads(done.stdout.splitlines()[-1])
    assert not wrong
    assert [row["case"] for row in rows] == [
        "small, float32", "small, bfloat16", "small sequential, float32",
        "small parallel, float32", "small phases, float32", "small decay, float32",
    ]  # fmt: skip
    assert all({"y", "dA", "dweights", "dh"} <= set(row["errors"]) for row in rows)


def test_nan_and_large_errors_are_failures() -> None:
    exact = {"y": torch.tensor([1.0, -2.0]), "dA": torch.tensor([1.0])}
    found = errors({"y": torch.tensor([1.0, -1.0]), "dA": torch.tensor([torch.nan])}, exact)
    assert found["y"] == 0.5
    assert len(failures(found, 0.1)) == 2
    assert failures({"y": 1e-6}, 1e-5) == []
    with pytest.raises(ValueError, match="y: expected"):
        errors({"y": torch.zeros(3)}, {"y": torch.zeros(2)})


def test_counts_of_one_small_case() -> None:
    """Two sequences of two chunks of 16 tokens, one head, everything written out."""
    shape = Shape(4, 8, H=1, K=2, P=8, N=16, S=4)
    whole = kernel_costs(shape, Plan(16, 2, 1, "ieee"), 4)
    tokens, product = 2 * 32, 8 * 16
    assert whole["output_kernel"].flops == 2 * tokens * (16 * 24 + 2 * product)
    assert whole["gradient_kernel"].flops == 2 * tokens * (16 * (48 + 16) + 3 * product)
    assert whole["carry_kernel"].flops == 2 * (2 * tokens * product)
    assert whole["pass_kernel"].bytes == 0
    x, pairs, scalars = 32 * 8 * 4, 32 * 16 * 4, 4 * (64 + 64 + 128 + 64)
    assert whole["output_kernel"].bytes == 3 * x + 2 * pairs + scalars
    cut = kernel_costs(shape, Plan(16, 1, 1, "ieee"), 4)
    assert cut["carry_kernel"].flops == 3 * (2 * tokens * product)
    assert cut["output_kernel"].bytes > whole["output_kernel"].bytes


@pytest.mark.parametrize("title", DECODER)
def test_costs_grow_with_the_batch(title: str) -> None:
    shape = DECODER[title]
    plan = Plan(32, 4, 1, "ieee")
    one, many = (kernel_costs(with_batch(shape, b), plan, 4) for b in (1, 16))
    assert set(one) == {"carry_kernel", "pass_kernel", "output_kernel", "gradient_kernel"}
    for name, cost in one.items():
        assert many[name].flops == 16 * cost.flops
        # The row table is shared by the batch.
        assert 15 * cost.bytes < many[name].bytes <= 16 * cost.bytes


def test_the_limit_is_the_slower_of_arithmetic_and_memory() -> None:
    peaks = Peaks(bandwidth=100.0, flops={"ieee": 10.0})
    assert Cost(flops=20, bytes=100).seconds(peaks, "ieee") == (2.0, "arithmetic")
    assert Cost(flops=20, bytes=300).seconds(peaks, "ieee") == (3.0, "memory")


def exact_output(case: Case) -> Tensor:
    return reference_scan(*case.arguments)[0]


def loop_of_mamba3(
    Q: Tensor, K: Tensor, V: Tensor, ADT: Tensor, DT: Tensor, Trap: Tensor,
    Q_bias: Tensor, K_bias: Tensor, Angles: Tensor, D: Tensor,
) -> Tensor:  # fmt: skip
    """What `mamba3_siso_combined` documents, head by head through the reference."""
    heads, groups = V.shape[2], Q.shape[2]
    order = torch.arange(V.shape[1])[None]
    parts = []
    for h in range(heads):
        g = h * groups // heads
        dt = DT[:, h, :, None]
        A = torch.where(dt > 0, ADT[:, h, :, None] / dt.clamp(min=1e-30), -1.0)
        y, _ = reference_scan(
            V[:, :, h : h + 1], K[:, :, g : g + 1], Q[:, :, g : g + 1], dt[:, None], A,
            Trap[:, h, :, None], Angles[:, :, h], K_bias[None, h : h + 1], Q_bias[None, h : h + 1],
            D[None, h : h + 1], order,
        )  # fmt: skip
        parts.append(y)
    return torch.cat(parts, dim=2)


def matrix_gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float) -> tuple[Tensor, None]:
    """o_t = scale sum over s <= t of exp(g_{s+1} + ... + g_t) (q_t . k_s) v_s."""
    total = g.double().cumsum(1).transpose(1, 2)
    decay = (total[..., :, None] - total[..., None, :]).tril().exp().tril()
    scores = scale * torch.einsum("bthn,bshn->bhts", q, k) * decay
    return torch.einsum("bhts,bshp->bthp", scores.to(v), v), None


@pytest.mark.parametrize("make, function", [(mamba3, loop_of_mamba3), (simple_gla, matrix_gla)])
@pytest.mark.parametrize("groups", [1, 2])
def test_peers_get_the_same_problem(make: Any, function: Any, groups: int) -> None:
    """With the peer's definition in its place, directions and diagonal included, y is ours."""
    shape = Shape(3, 4, H=2, G=groups, K=4, P=8, N=8, S=2, b=2)
    case = in_float64(make_case(shape, cold=True))._replace(weights=torch.rand(2, 4).double())
    contender: Contender = make(case, function)
    # Peers take float32; the arithmetic here stays as wide as the inputs.
    y = contender.run(*case.tensors)
    assert errors({"y": y}, {"y": exact_output(case)})["y"] < 1e-5


def test_absent_peers_are_named() -> None:
    found, absent = peers(make_case(SMALL, cold=True))
    assert len(found) + len(absent) == 2
    assert all(absent.values())


def test_the_table_shows_what_was_not_measured() -> None:
    same = {"shape": "16^2", "batch": 1, "dtype": "torch.float32"}
    ms = {"forward": 0.5, "forward+backward": 2.0}
    printed = gpu.table([
        {**same, "name": "triton, ieee", "ms": ms, "error_to_float64": 1e-7},
        {**same, "name": "slow", "ms": {k: 4 * v for k, v in ms.items()}, "error_to_float64": 0.1},
        {**same, "name": "peer", "not_measured": "out of time"},
    ])  # fmt: skip
    assert "4.00" in printed
    assert "out of time" in printed


@pytest.mark.slow
def test_the_network_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu_network, "WARM_UP", 1)
    monkeypatch.setattr(_gpu_network, "REPEATS", 1)
    found = _gpu_network.measure("eager", "lite", 1, "cpu", (64, 64))
    assert found["training_images_per_second"] > 0
    assert found["prediction_images_per_second"] > 0
