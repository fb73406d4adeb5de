"""The compiled library of the native backend: found, checked, and called through ctypes.

It is built by `pip install` where a C++ compiler is (hatch_build.py) and lies beside this file.
Nothing is loaded before it is needed, and its absence has a reason that can be shown.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mambaadv2.errors import ConfigError

ABI = 2  # kAbi in csrc/scan.h
PATH = Path(__file__).parent / "libmambaadv2_scan.so"
DISABLED_VARIABLE = "MAMBAADV2_NATIVE"  # "0": do as if there were no library
ISA_VARIABLE = "MAMBAADV2_NATIVE_ISA"  # baseline, avx2 or avx512; read once, by the library

_REBUILD = "run pip install again where a C++ compiler is (docs/scan.md)"

# The fields of the scan's structures of csrc/scan.h, in their order. A plain name is a size or a
# stride; a name with a star is a pointer.
_PROBLEM = """b K L H G P N S
*x x_batch x_token x_head *B B_batch B_token B_group *C C_batch C_token C_group
*dt dt_batch dt_direction dt_token dt_head *A A_batch A_token A_head
*trap trap_batch trap_token trap_head *angle angle_batch angle_token
*B_bias *C_bias *D *order *weights *first_h *first_k *first_x"""
_OUTPUTS = "*y *last_h *last_k *last_x"
_GRADIENTS = """*given_y *given_h *given_k *given_x
*x *B *C *dt *A *trap *angle *B_bias *C_bias *D *weights *first_h *first_k *first_x"""


def _fields(names: str) -> list[tuple[str, type[ctypes.c_void_p] | type[ctypes.c_int64]]]:
    return [
        (name.lstrip("*"), ctypes.c_void_p if name.startswith("*") else ctypes.c_int64)
        for name in names.split()
    ]


class Problem(ctypes.Structure):
    """Sizes, strides and addresses of a scan's inputs."""

    _fields_ = _fields(_PROBLEM)


class Outputs(ctypes.Structure):
    """Addresses that the forward pass writes to."""

    _fields_ = _fields(_OUTPUTS)


class Gradients(ctypes.Structure):
    """Addresses of the outputs' gradients and of those that the backward pass writes."""

    _fields_ = _fields(_GRADIENTS)


class NormSilu(ctypes.Structure):
    """Sizes and addresses of an instance normalisation with SiLU."""

    _fields_ = (
        *_fields("images positions channels"),
        ("epsilon", ctypes.c_float),
        *_fields("*x *mean *scale *y *dx"),
    )


class Depthwise(ctypes.Structure):
    """Sizes and addresses of a depth-wise convolution."""

    _fields_ = _fields("images height width channels kernel *x *given *shares")


STRUCTURES = (Problem, Outputs, Gradients, NormSilu, Depthwise)
NOT_A_PERMUTATION = 2  # kNotAPermutation in csrc/scan.h


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and why not; its instruction set otherwise."""
    if not PATH.is_file():
        return None, f"it was not built ({PATH.name} is missing); {_REBUILD}"
    try:
        library = ctypes.CDLL(str(PATH))
        abi, layout = library.mambaadv2_abi(), library.mambaadv2_layout
        layout.restype = ctypes.c_int64
        sizes = [layout(index) for index in range(len(STRUCTURES))]
    except (OSError, AttributeError) as error:
        return None, f"{PATH.name} cannot be loaded ({error}); {_REBUILD}"
    ours = [ctypes.sizeof(kind) for kind in STRUCTURES]
    if abi != ABI or sizes != ours:
        return None, f"{PATH.name} is of another version (ABI {abi}, not {ABI}); {_REBUILD}"
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
    """Where a tensor's numbers begin; a null pointer for None and for an empty one."""
    return None if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def require_done(status: int) -> None:
    """Stop where a function of the library refused its arguments."""
    if status != 0:
        raise ConfigError(f"native library: status {status}")


def fill(structure: ctypes.Structure, values: Mapping[str, Tensor | int | None]) -> None:
    """Set fields by name; a tensor becomes its address."""
    for name, value in values.items():
        setattr(structure, name, value if isinstance(value, int) else address(value))
