"""The Triton backend: in Triton's interpreter on every machine, on a GPU where there is one.

The kernels' cases are in `triton_cases.py`, which runs as a program of its own: whether kernels are
interpreted is decided when they are imported, and no other test may be touched by that.

`selective_scan` reaches this backend by name only.
"""

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

from mambaadv2.errors import BackendError, ConfigError
from mambaadv2.scan.triton import triton_scan, unsupported, why_not
from mambaadv2.scan.triton_plan import SHORT, Plan, choose_plan

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not INSTALLED, reason="triton is not installed")
H100_SMS, H100_SHARED = 132, 227 * 1024

# Names of `triton_cases.SMALL` and `OTHERS`; a test keeps the two lists together.
CASES = (
    "one token", "L5 three groups", "L16 all rotate", "L17 sequential", "L17 parallel",
    "L33 segments", "L64 K8 sequential", "L64 K4 parallel", "L100 N64", "chunk of 128",
    "no state, no weights", "bfloat16", "bfloat16 parallel", "bfloat16 products", "float16",
    "phases", "decay", "decay sequential", "continuation", "strides and order types",
    "NaN stays NaN", "one node", "no permutation",
)  # fmt: skip


def run(module: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run a module of this folder; the JSON object that it prints last."""
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", f"tests.scan.{module}", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def wrong(case: dict[str, Any]) -> list[str]:
    """What is further off than allowed; a NaN always is."""
    allowed = case["tolerance"]
    return [f"{name} {e:.1e}" for name, e in case["errors"].items() if not e <= allowed]


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    return run("triton_cases", "cpu", TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_output_and_gradient_in_the_interpreter(
    interpreted: dict[str, Any], name: str
) -> None:
    assert interpreted[name]["errors"]
    assert not wrong(interpreted[name])


@needs_triton
@pytest.mark.slow
def test_every_case_has_its_test(interpreted: dict[str, Any]) -> None:
    assert set(interpreted) == set(CASES)


@needs_triton
@pytest.mark.slow
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_output_and_gradient_on_a_gpu() -> None:
    found = run("triton_cases", "cuda", TRITON_INTERPRET="0")
    assert set(found) > set(CASES)
    bad = {name: wrong(case) for name, case in found.items() if wrong(case)}
    assert not bad


@needs_triton
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="triton's compiler is for Linux")
def test_kernels_compile_without_a_gpu(tmp_path: Path) -> None:
    """For an H100 and for a Blackwell card; `triton_compile` alone knows more configurations."""
    if importlib.util.find_spec("triton.backends.nvidia") is None:
        pytest.skip("this triton has no CUDA compiler")
    cache = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    hopper = ("decoder float32", "decoder bfloat16", "largest float32")
    found = run("triton_compile", "90", *hopper, **cache)
    blackwell = run("triton_compile", "100", "decoder bfloat16", **cache)
    found["decoder, Blackwell"] = blackwell["decoder bfloat16"]
    for name, kernels in found.items():
        assert {"output_kernel", "gradient_kernel"} <= set(kernels), name
        for kernel, used in kernels.items():
            assert used["shared"] <= H100_SHARED // 2, f"{name}, {kernel}: {used}"
            assert not used["approximate"], f"{name}, {kernel}"
            if name.startswith("decoder") and not kernel.startswith("gradient"):
                # A few bytes cost nothing; more would mean that the tiles have outgrown registers.
                assert used["spilled"] <= 16, f"{name}, {kernel}: {used}"


def test_importing_imports_no_triton() -> None:
    code = "import sys, mambaadv2.scan.triton; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_reason_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cpu = torch.device("cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "triton is not installed" in str(why_not(cpu))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
    assert "TRITON_INTERPRET=1" in str(why_not(cpu))
    assert "not meta" in str(why_not(torch.device("meta")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old Card")
    assert "Old Card" in str(why_not(torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert why_not(torch.device("cuda")) is None
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert why_not(cpu) is None


def call(head_dim: int = 8, dtype: torch.dtype = torch.float32) -> None:
    ones = torch.ones
    tensors = (
        ones(1, 4, 1, head_dim, dtype=dtype), ones(1, 4, 1, 8), ones(1, 4, 1, 8),
        ones(1, 1, 4, 1), -ones(1, 4, 1), ones(1, 4, 1), ones(1, 4, 0),
        ones(1, 1, 8), ones(1, 1, 8), ones(1, 1),
    )  # fmt: skip
    triton_scan(*tensors, torch.arange(4)[None], None, None, return_state=False)


def test_refusals_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if why_not(torch.device("cpu")) is not None:
        with pytest.raises(BackendError, match=r"'triton' cannot run: .*"):
            call()
    monkeypatch.setattr("mambaadv2.scan.triton.why_not", lambda device: None)
    with pytest.raises(ConfigError, match=r"^P: expected a multiple of 8.*got 12.*chunked"):
        call(head_dim=12)
    with pytest.raises(ConfigError, match=r"^x: expected float32.*float64.*chunked"):
        call(dtype=torch.float64)
    assert "N: expected" in str(unsupported(8, 136, torch.float32))
    assert unsupported(128, 8, torch.bfloat16) is None


@pytest.mark.parametrize(
    "sizes, regime",
    [
        ((1, 8, 4096, 4, 1), "parallel"),
        ((16, 8, 4096, 4, 1), "sequential"),
        ((1, 4, 1024, 8, 1), "parallel"),
        ((16, 4, 1024, 8, 1), "sequential"),
        ((1, 2, 256, 16, 1), "parallel"),
        ((16, 2, 256, 16, 1), "sequential"),
        ((1, 1, 64, 32, 1), "sequential"),
    ],
)
def test_the_regime_follows_the_count_of_programs(
    sizes: tuple[int, int, int, int, int], regime: str
) -> None:
    b, K, L, H, G = sizes
    plan = choose_plan(b, K, L, H, G, 32, 32, torch.float32, H100_SMS)
    chunks = -(-L // plan.chunk)
    segments = -(-chunks // plan.span)
    assert (segments > 1) == (regime == "parallel")
    if chunks > SHORT:
        assert b * K * H * segments >= min(H100_SMS, b * K * H * chunks)
    assert (H // G) % plan.heads == 0


@pytest.mark.parametrize("L", [1, 5, 16, 17, 33, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_length_has_a_plan(L: int, dtype: torch.dtype) -> None:
    plan = choose_plan(1, 1, L, 5, 1, 128, 8, dtype, 1)
    assert plan == Plan(16, -(-L // 16), plan.heads, "ieee" if dtype == torch.float32 else "tf32")
    assert 5 % plan.heads == 0
