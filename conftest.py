"""What pytest collects: the files of the GPU kernels can only be imported where triton is."""

from __future__ import annotations

import importlib.util

_NEED_TRITON = (
    "src/mambaadv2/scan/triton_gradient.py",
    "src/mambaadv2/scan/triton_kernels.py",
    "src/mambaadv2/scan/triton_ops.py",
    "src/mambaadv2/scan/triton_pieces.py",
    "tests/scan/triton_compile.py",
)

collect_ignore = [] if importlib.util.find_spec("triton") else list(_NEED_TRITON)
