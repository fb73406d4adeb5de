"""The chunked form as an ONNX graph in the generic runtimes, where they are installed.

`pip install onnx onnxscript onnxruntime openvino` brings them. The graph is exported for one shape,
with its loop over chunks unrolled, and runs on as many threads as torch.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mambaadv2.scan import selective_scan

Graph = Callable[..., Tensor]
MOST_CHUNKS = 32  # the exporter's time grows with the square of the unrolled loop


class _Scan(nn.Module):
    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order)
        self.order: Tensor

    def forward(self, *tensors: Tensor) -> Tensor:
        return selective_scan(*tensors, order=self.order, backend="chunked")


def graphs(tensors: Sequence[Tensor], order: Tensor) -> Iterator[tuple[str, Graph]]:
    """Name and function of each runtime that is installed, forward only."""
    names = [name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)]
    if not names or not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        return
    if order.shape[1] > 32 * MOST_CHUNKS:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.onnx"
        program = torch.onnx.export(_Scan(order).eval(), tuple(tensors), dynamo=True, verbose=False)
        assert program is not None
        program.save(path)
        if "onnxruntime" in names:
            yield "onnxruntime", _onnxruntime(path)
        if "openvino" in names:
            yield "openvino", _openvino(path)


def _onnxruntime(path: Path) -> Graph:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(*tensors: Tensor) -> Tensor:
        feed = {name: part.numpy() for name, part in zip(names, tensors, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def _openvino(path: Path) -> Graph:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = openvino.Core()
    model = core.compile_model(core.read_model(path), "CPU", settings)

    def run(*tensors: Tensor) -> Tensor:
        return torch.from_numpy(model([part.numpy() for part in tensors])[0])

    return run
