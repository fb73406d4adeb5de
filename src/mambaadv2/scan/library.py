"""The compiled library of the native backend: found, checked, and called through ctypes.

It is built by `pip install` where a C++ compiler is (hatch_build.py) and lies beside this file.
Nothing is loaded before it is needed, and its absence has a reason that can be shown.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from pathlib import Path

import torch
from torch import Tensor

from mambaadv2.errors import ConfigError

ABI = 2  # kAbi in csrc/scan.h
PATH = Path(__file__).parent / "libmambaadv2_scan.so"
DISABLED_VARIABLE = "MAMBAADV2_NATIVE"  # "0": do as if there were no library
ISA_VARIABLE = "MAMBAADV2_NATIVE_ISA"  # baseline, avx2 or avx512; read once, by the library

_REBUILD = "run pip install again where a C++ compiler is; torch computes the same, slower"

# Fields of Problem, Outputs, Gradients, NormSilu and Depthwise of csrc/scan.h, all of 8 bytes.
_FIELDS = (44, 4, 18, 8, 8)
_PACKERS = {count: struct.Struct(f"@{count}q").pack for count in _FIELDS}

_NOT_A_PERMUTATION = 2  # kNotAPermutation in csrc/scan.h


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and why not; its instruction set otherwise."""
    if not PATH.is_file():
        return None, f"it was not built ({PATH.name} is missing); {_REBUILD}"
    try:
        library = ctypes.CDLL(str(PATH))
        abi, layout = library.mambaadv2_abi(), library.mambaadv2_layout
        layout.restype = ctypes.c_int64
        sizes = [layout(index) for index in range(len(_FIELDS))]
    except (OSError, AttributeError) as error:
        return None, f"{PATH.name} cannot be loaded ({error}); {_REBUILD}"
    ours = [8 * count for count in _FIELDS]
    if abi != ABI or sizes != ours:
        return None, f"{PATH.name} is of another version (ABI {abi}, not {ABI}); {_REBUILD}"
    library.mambaadv2_use_team.argtypes = [ctypes.c_void_p]
    library.mambaadv2_use_team(_openmp_team())
    library.mambaadv2_isa.restype = ctypes.c_char_p
    library.mambaadv2_workspace.restype = ctypes.c_int64
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    library.mambaadv2_workspace.argtypes = [pointer, number, number]
    library.mambaadv2_forward.argtypes = [pointer, pointer, number, pointer]
    library.mambaadv2_backward.argtypes = [pointer, pointer, number, pointer]
    library.mambaadv2_norm_silu.argtypes = [pointer, number, number]
    library.mambaadv2_depthwise_workspace.argtypes = [pointer, number]
    library.mambaadv2_depthwise_workspace.restype = ctypes.c_int64
    library.mambaadv2_depthwise_weight.argtypes = [pointer, pointer, number, pointer]
    isa = library.mambaadv2_isa()
    if isa is None:
        forced = os.environ.get(ISA_VARIABLE)
        return None, (
            f"{ISA_VARIABLE}={forced} is not an instruction set of this processor and build; "
            "choose baseline, avx2 or avx512, or unset it"
        )
    return library, isa.decode()


def _openmp_team() -> int | None:
    """Address of `GOMP_parallel` in the OpenMP runtime that torch itself uses, where it does."""
    try:
        # A name is looked up in a library and in those that it was linked to.
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(torch_cpu.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


def why_not() -> str | None:
    """Why the library cannot be used here, with what to do about it; None where it can."""
    if os.environ.get(DISABLED_VARIABLE) == "0":
        return f"{DISABLED_VARIABLE}=0 switches it off; unset it"
    library, said = _load()
    return None if library is not None else said


def instruction_set() -> str:
    """Instruction set that the library uses here: "baseline", "avx2" or "avx512"."""
    library, said = _load()
    assert library is not None, said
    return said


def library() -> ctypes.CDLL:
    """The loaded library; only where `why_not()` is None."""
    loaded, said = _load()
    assert loaded is not None, said
    return loaded


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's numbers begin; a null pointer for None and for an empty one.

    Raises:
        ConfigError: it holds other numbers than the library reads and writes.
    """
    if tensor is None or tensor.numel() == 0:
        return None
    if tensor.dtype not in (torch.float32, torch.int64) or tensor.device.type != "cpu":
        raise ConfigError(
            f"native library: expected float32 or int64 on the CPU, got {tensor.dtype} on "
            f"{tensor.device}; call it through mambaadv2.selective_scan"
        )
    return tensor.data_ptr()


def require_done(status: int) -> None:
    """Stop where a function of the library refused its arguments."""
    if status == _NOT_A_PERMUTATION:
        raise ConfigError("order: every row must be a permutation of 0..L-1")
    if status != 0:
        raise ConfigError(f"native library: a size that it does not take (status {status})")


def pack(*values: Tensor | int | None) -> bytes:
    """A structure of the C interface from its fields in their order; a tensor is its address."""
    fields = [value if isinstance(value, int) else address(value) or 0 for value in values]
    return _PACKERS[len(fields)](*fields)
