"""Compiles every Triton kernel for a GPU that need not be there, and prints what each one uses.

    python -m tests.scan.triton_compile 90      for compute capability 9.0

The launches are those of a forward and a backward on CPU tensors, recorded instead of run, so types
and constants are the ones that users get. The interpreter accepts much that the compiler refuses:
changing types in loops, sizes that are no constants, tiles that are no powers of two.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from benchmarks._scan_case import Shape
from mambaadv2.scan import triton_ops
from mambaadv2.scan.triton_plan import Plan, choose_plan

KERNELS = ("carry_kernel", "pass_kernel", "output_kernel", "gradient_kernel")
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32"}
OPTIONS = ("num_warps", "num_stages")
SMS = 132  # of an H100

DECODER_SHAPE = Shape(64, 64, H=4, K=8)
CONFIGURATIONS: dict[str, tuple[Shape, torch.dtype, str | None]] = {
    "decoder float32": (DECODER_SHAPE, torch.float32, None),
    "decoder bfloat16": (DECODER_SHAPE, torch.bfloat16, None),
    "decoder tf32x3": (DECODER_SHAPE, torch.float32, "tf32x3"),
    "decoder bfloat16 products": (DECODER_SHAPE, torch.bfloat16, "bfloat16"),
    "odd": (Shape(33, 31, H=5, K=1, G=5, P=8, N=24, S=0), torch.float32, None),
    "largest float32": (Shape(32, 32, H=4, K=2, P=128, N=128, S=64), torch.float32, None),
    "largest bfloat16": (Shape(32, 32, H=4, K=2, P=128, N=128, S=64), torch.bfloat16, None),
}


@dataclass(frozen=True, slots=True)
class Launch:
    """One recorded launch."""

    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        way = [word for word in ("REVERSE", "EACH") if self.options.get(word)]
        return " ".join([self.kernel.__name__, *way])


class Recorder:
    """Stands where a kernel stands; `kernel[grid](...)` notes the launch and computes nothing."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(0 < extent < 2**31 for extent in grid)

        def launch(*arguments: Any, **options: Any) -> None:
            self.launches.append(Launch(self.kernel, arguments, options))

        return launch


def record(shape: Shape, dtype: torch.dtype, mode: str | None) -> list[Launch]:
    """Every launch of a forward and a backward with weights and an initial state."""
    b, K, L, H, G, P, N, S = (
        shape.b, shape.K, shape.L, shape.H, shape.G, shape.P, shape.N, shape.S
    )  # fmt: skip
    plan = choose_plan(b, K, L, H, G, P, N, dtype, SMS)
    cut = (plan.chunk, plan.span, plan.heads, mode or plan.mode)
    assert Plan(*cut).span >= 1
    zeros = torch.zeros
    state = zeros(b, K, H, 2, N // 2, P)
    x = zeros(b, L, H, P, dtype=dtype)
    given = (
        x, zeros(b, L, G, N), zeros(b, L, G, N), zeros(b, K, L, H), zeros(b, L, H),
        zeros(b, L, H), zeros(b, L, S), zeros(K, H, N), zeros(K, H, N), zeros(K, H),
        torch.arange(L, dtype=torch.int32).repeat(K, 1), zeros(b, K), state,
    )  # fmt: skip
    launches: list[Launch] = []
    kernels = {name: getattr(triton_ops, name) for name in KERNELS}
    try:
        for name, kernel in kernels.items():
            setattr(triton_ops, name, Recorder(kernel, launches))
        triton_ops._forward(*given, True, *cut)
        triton_ops._backward(x, state, *given, *cut)
    finally:
        for name, kernel in kernels.items():
            setattr(triton_ops, name, kernel)
    return launches


def source(launch: Launch) -> tuple[Any, dict[str, int]]:
    """The kernel specialised as by Triton's launcher: pointers are multiples of 16 bytes."""
    values = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)) | launch.options
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for parameter in launch.kernel.params:
        value = values[parameter.name]
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            attributes[(parameter.num,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            assert parameter.do_not_specialize, parameter.name
            signature[parameter.name] = "i32"
    options = {name: launch.options[name] for name in OPTIONS if name in launch.options}
    return ASTSource(launch.kernel, signature, constants, attributes), options


def compile_for(launch: Launch, arch: int) -> dict[str, object]:
    """Registers, bytes spilled per thread, shared memory, and approximate functions in the code."""
    ast, options = source(launch)
    compiled = triton.compile(ast, target=GPUTarget("cuda", arch, 32), options=options)
    ptx = compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        name = f"--gpu-name=sm_{arch}{'a' if arch >= 90 else ''}"
        command = [get_ptxas(arch).path, "-v", name, file.name, "-o", "/dev/null"]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", log)
    spilled = re.search(r"(\d+) bytes spill stores", log)
    assert registers is not None
    assert spilled is not None
    return {
        "warps": compiled.metadata.num_warps,
        "registers": int(registers[1]),
        "spilled": int(spilled[1]),
        "shared": compiled.metadata.shared,
        "approximate": sorted(set(re.findall(r"\b(?:sin|cos|tanh)\.approx", ptx))),
    }


def main(arch: int, chosen: list[str]) -> int:
    """Print {configuration: {kernel: what it uses}}."""
    found: dict[str, dict[str, object]] = {}
    for name, (shape, dtype, mode) in CONFIGURATIONS.items():
        if chosen and name not in chosen:
            continue
        kinds = {launch.name: launch for launch in record(shape, dtype, mode)}
        found[name] = {kind: compile_for(launch, arch) for kind, launch in kinds.items()}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
