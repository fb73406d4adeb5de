"""What a piece of work will need in memory, found by doing a little of it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from mambaadv2.data.features import CachePlan
from mambaadv2.errors import ConfigError, ImageError
from mambaadv2.image import ImageHeader, read_header
from mambaadv2.memory import free_memory, give_back, peak, peak_of, resident
from mambaadv2.model.network import Network, reconstruction_loss
from mambaadv2.predictor import Predictor
from mambaadv2.readers import THREADS, readers_for

GROWTH = 1.5  # of the network's part: later batches find memory in pieces; 1.3 was measured
READER = 36e6  # bytes of a process that reads, before it has a large image
PATH = 500.0  # bytes for each image's path, in every list and set that holds it
# Bytes for each pixel of the largest image.
DECODING, DECODING_DEEP = 20.0, 36.0  # while a file is decoded; one with more than 8 bits
DRAWING = 48.0  # while a heat map is drawn
READ = 3.0  # red, green and blue
MAP = 4.0  # float32

# Of what a training step keeps for its backward pass; the rest is gradients and memory in pieces.
# Whole trainings took 1.5 to 2.0 times as much, the more the larger the batch and the smaller the
# maps.
STEP_LEAST, STEP_MOST, SLACK = 1.35, 2.0, 1.1
FORWARD = 0.3  # of the same, for a pass without a backward one
ENCODING = 500.0  # bytes for each pixel of a batch that the encoder sees; half of it stays
FORWARD_BATCH = 16  # of feature extraction and calibration
STATE, SAVING = 3, 10  # times the weights: gradients and two moments; and while they are written
START = 22.0  # bytes for each feature value of the images behind the PCA start
START_IMAGES = 64

ROUND = 0.05e9  # what is printed is rounded up
HEADERS_AT_ONCE, HEADERS_CHUNK = 4, 1000  # a network drive answers late


@dataclass(frozen=True, slots=True)
class PredictionPlan:
    """How to predict a list of files, and what it costs.

    batch_size: what was asked for, or less where memory is short. readers: processes that read.
    bytes: of memory at most, this process and its readers together. sentence: that, for people.
    """

    batch_size: int
    readers: int
    bytes: int
    sentence: str


def prediction_plan(predictor: Predictor, paths: Sequence[str], batch_size: int) -> PredictionPlan:
    """Decide on batch and readers, and warm the network up with a batch of that size.

    Raises `ConfigError` when not even one image at once fits into free memory.
    """
    so_far, start, free = peak(), resident(), free_memory()
    largest = _largest(paths)
    pixels, readers = largest.width * largest.height, readers_for(len(paths))
    fixed = _reading(largest, readers) + DRAWING * pixels + PATH * len(paths)
    each = (2 * READ + MAP) * pixels  # one batch is at work while the next is read
    wanted = min(batch_size, len(paths))
    tried, network = 0, 0.0
    while True:
        # Step by step: what would not fit must not be tried.
        batch = min(wanted, max(1, 8 * tried))
        growth = GROWTH * network / max(1, tried)  # by image
        if fixed + batch * (each + growth) > free:
            batch = int((free - fixed) / (each + growth))
            break
        if batch == tried:
            break
        try:
            network = _network(predictor, batch, start)
        except torch.OutOfMemoryError:  # a GPU's
            batch = tried
            break
        tried = batch
    size = f"images of up to {largest.width} x {largest.height} pixels"
    if batch < 1:
        raise ConfigError(
            f"batch_size: even one of these {size} ({largest.path}) needs about "
            f"{_gigabytes(fixed + each)} of memory beside the model, {_gigabytes(free)} are free; "
            "close other programs, or resize or leave out the largest images"
        )
    need = max(so_far, start + fixed + batch * (each + GROWTH * network / max(1, tried)))
    lowered = f" (not {batch_size}: memory is short)" if batch < wanted else ""
    sentence = (
        f"memory: about {_gigabytes(need + ROUND)} at most: the model, batches of {batch}{lowered} "
        f"{size}; free: {_gigabytes(free)}"
    )
    return PredictionPlan(batch if batch < wanted else batch_size, readers, int(need), sentence)


@dataclass(frozen=True, slots=True)
class TrainingNeed:
    """Memory of this process and its readers in bytes: at most, and at least. sentence: of both."""

    bytes: int
    least: int
    sentence: str


def training_need(
    network: Network, plan: CachePlan, batch_size: int, paths: Sequence[str], held: int
) -> TrainingNeed:
    """What training on these files will need, from one image sent through a copy of the network.

    held: held-out images of the class that has most of them. The network and the random state stay
    as they are. On a GPU only the computer's own memory counts. Raises `ConfigError` when the least
    that it can be is not free.
    """
    start, free = resident(), free_memory()
    images = min(batch_size, len(paths))
    kept, values = _kept_for_backward(network)
    height, width = network.config.image_size
    weights = sum(p.nbytes for p in network.trainable().values())
    encoding = ENCODING * height * width * min(FORWARD_BATCH, len(paths))
    working = max(
        FORWARD * kept * min(FORWARD_BATCH, held),
        SAVING * weights,
        STATE * weights + STEP_MOST * kept * images + encoding / 2,
    )
    cache = plan.bytes if plan.mode == "memory" else 0
    most = max(encoding, START * values * min(START_IMAGES, len(paths)) + working)
    most = SLACK * (
        most + cache + _reading(_largest(paths), readers_for(len(paths))) + PATH * len(paths)
    )
    least = STATE * weights + STEP_LEAST * kept * images
    size = f"{images} images of {width} x {height} pixels"
    if least > free:
        fits = int((free - STATE * weights) / (STEP_LEAST * max(1.0, kept)))
        advice = f"a batch of {fits} may fit; or" if fits >= 1 else "close other programs or"
        raise ConfigError(
            f"batch_size: a step of {size} needs at least {_gigabytes(least)} of memory, "
            f"{_gigabytes(free)} are free; {advice} take smaller images or a smaller preset"
        )
    doubt = ", which may not be enough" if most > free else ""
    features = f" and {cache / 1e6:.0f} MB of features" if cache else ""
    sentence = (
        f"memory: about {_gigabytes(start + most + ROUND)} at most: the network, steps of {size}"
        f"{features}; free: {_gigabytes(free)}{doubt}"
    )
    return TrainingNeed(int(start + most), int(start + least), sentence)


@dataclass(frozen=True, slots=True)
class _Largest:
    """The image with most pixels, and whether any has more than 8 bits a sample."""

    path: str = ""
    width: int = 0
    height: int = 0
    deep: bool = False


def _reading(largest: _Largest, readers: int) -> float:
    """Bytes for processes or threads that decode."""
    pixel = DECODING_DEEP if largest.deep else DECODING
    return readers * READER + (readers or THREADS) * pixel * largest.width * largest.height


def _kept_for_backward(network: Network) -> tuple[float, int]:
    """Bytes that a training step keeps for each image, and feature values of an image."""
    device = network.feature_scale.device
    # The encoder is frozen and need not be copied.
    trial = copy.deepcopy(network, {id(network.encoder): network.encoder}).train()
    own = {t.untyped_storage().data_ptr() for t in (*trial.parameters(), *trial.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself, an output would hold its graph and be held by it for ever

    size = network.config.image_size
    # BatchNorm needs two values; the neck's last maps are H/32 x W/32.
    images = 1 if size[0] * size[1] > 32 * 32 else 2
    features = network.features(torch.zeros(images, 3, *size, device=device))
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), hooks:
        scaled = trial.scaled(features)
        terms = reconstruction_loss(scaled, trial.reconstruct(scaled))
    del terms, scaled, trial
    give_back()
    bytes_ = 0.0 if device.type == "cuda" else sum(kept.values()) / images
    return bytes_, sum(f[0].numel() for f in features)


def _network(predictor: Predictor, batch: int, start: int) -> float:
    """Bytes beyond `start` that the network takes for a batch; warms it up as well."""
    images = torch.zeros(batch, 3, *predictor.image_size, dtype=torch.uint8)
    return max(0, peak_of(lambda: predictor.predict_tensor(images)) - start)


def _largest(paths: Sequence[str]) -> _Largest:
    """Look at the header of every file; those that cannot be read count nothing."""
    found = _Largest()
    with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
        for start in range(0, len(paths), HEADERS_CHUNK):
            chunk = paths[start : start + HEADERS_CHUNK]
            for path, header in zip(chunk, pool.map(_header, chunk), strict=True):
                if header is None:
                    continue
                if header.width * header.height > found.width * found.height:
                    found = _Largest(path, header.width, header.height, found.deep)
                if header.bits > 8 and not found.deep:
                    found = dataclasses.replace(found, deep=True)
    return found


def _header(path: str) -> ImageHeader | None:
    try:
        return read_header(path)
    except ImageError:
        return None


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB"
