"""Images per second of the whole network on a GPU, in a process of its own.

    python -m benchmarks._gpu_network eager triton r34 16

A process of its own because the scan's backend is chosen by an environment variable, and because
the caller must be able to stop a compilation that takes too long. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable

WARM_UP, REPEATS = 3, 10


def seconds(step: Callable[[], object], wait: Callable[[], object]) -> float:
    """Median time of a step, after `WARM_UP` calls; `wait` returns when the device is done."""
    for _ in range(WARM_UP):
        step()
    found = []
    for _ in range(REPEATS):
        wait()
        start = time.perf_counter()
        step()
        wait()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def graphed(step: Callable[[], object]) -> Callable[[], object]:
    """The step's launches recorded once and played back."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measure(
    mode: str,
    preset: str,
    batch: int,
    device: str = "cuda",
    image_size: tuple[int, int] | None = None,
) -> dict[str, float]:
    """Speed of a training step from features, and of a prediction from images, under autocast.

    mode: "eager", "graph" (recorded without a compiler) or "compile" (with CUDA graphs).
    """
    import torch

    from mambaadv2.fit import make_optimizer
    from mambaadv2.model.encoder import build_encoder
    from mambaadv2.model.network import Network, reconstruction_loss
    from mambaadv2.model.presets import preset_config

    torch.manual_seed(0)
    config = preset_config(preset, image_size=image_size)
    network = Network(config, build_encoder(config.encoder, pretrained=False)).to(device)
    images = torch.rand(batch, 3, *config.image_size, device=device)
    features = network.features(images)
    reconstruct = network.reconstruct
    if mode == "compile":
        # "reduce-overhead" is the compiler's name for CUDA graphs.
        reconstruct = torch.compile(network.reconstruct, mode="reduce-overhead")
    optimizer = make_optimizer(network.trainable(), 1e-3, 1e-4, (0.9, 0.999))

    def gradient() -> None:
        with torch.autocast(device, torch.bfloat16):
            scaled = network.scaled(features)
            loss = torch.stack(
                list(reconstruction_loss(scaled, reconstruct(scaled)).values())
            ).sum()
        optimizer.zero_grad(set_to_none=mode != "graph")
        loss.backward()

    def predict() -> object:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            return reconstruct(network.scaled(network.features(images)))

    network.train()
    record = graphed if mode == "graph" else (lambda step: step)
    recorded = record(gradient)

    def train() -> None:
        recorded()
        optimizer.step()

    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    training = seconds(train, wait)
    network.eval()
    prediction = seconds(record(predict), wait)
    return {
        "training_images_per_second": batch / training,
        "prediction_images_per_second": batch / prediction,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0,
    }


def main(mode: str, backend: str, preset: str, batch: int) -> int:
    os.environ["MAMBAADV2_SCAN_BACKEND"] = backend
    from mambaadv2.errors import MambaADv2Error

    try:
        print(json.dumps(measure(mode, preset, batch)))
    except MambaADv2Error as error:
        print(json.dumps({"error": str(error)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
