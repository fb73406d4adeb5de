"""Where an unfinished training stands, on disk, so that a killed one goes on to the same bits.

A snapshot is one safetensors file whose name carries the step and the SHA-256 of its content:
`step-00001200-<hash>.safetensors`. It gets its name after its content is on the disk, the one
before is kept, and a damaged one is told by its name; whatever happens, one that is whole remains.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mambaadv2.files import remove_unfinished, write_atomically
from mambaadv2.model.network import Network

FOLDER = "resume"  # in the run folder
KEPT = 2
MOST_SHARE = 0.02  # of the time, for writing snapshots
_NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{64})\.safetensors")
_FROZEN = "encoder."  # comes from its own file and never changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that training needs to go on.

    step: steps done. tensors: by name, on any device. facts: JSON values of the loop, the schedule
    and the log; floats come back to the bit.
    """

    step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class Snapshots:
    """The snapshots of a run folder.

    every: seconds between two, at least; more where writing takes longer than 2 % of the time.
    """

    def __init__(self, run: Path, every: float) -> None:
        self.folder, self.every = run / FOLDER, every
        self._damaged: set[Path] = set()
        self._cost = 0.0
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for the next one."""
        wait = max(self.every, self._cost / MOST_SHARE)
        return time.monotonic() - self._last >= wait

    def save(self, snapshot: Snapshot) -> None:
        """Write one and remove all but the whole one before it; of later steps none is kept.

        Raises `OSError` when it cannot be written; what was there stays.
        """
        from safetensors.torch import save

        start = time.monotonic()
        self.folder.mkdir(exist_ok=True)
        tensors = {n: t.detach().cpu().contiguous() for n, t in snapshot.tensors.items()}
        facts = json.dumps({"step": snapshot.step, **snapshot.facts}, allow_nan=False)
        data = save(tensors, metadata={"facts": facts})
        name = f"step-{snapshot.step:08d}-{hashlib.sha256(data).hexdigest()}.safetensors"
        written = self.folder / name
        try:
            write_atomically(written, data)
        finally:
            # A full disk is asked again only after the usual wait.
            self._last = time.monotonic()
            self._cost = self._last - start
        before = [
            path
            for step, path in self._named()
            if step <= snapshot.step and path != written and path not in self._damaged
        ]
        for _, path in self._named():
            if path not in (written, *before[: KEPT - 1]):
                path.unlink(missing_ok=True)

    def newest(self) -> tuple[Snapshot | None, list[str]]:
        """The newest one that is whole, and a sentence about each newer one that is not."""
        words: list[str] = []
        for step, path in self._named():
            snapshot = _read(path)
            if snapshot is not None:
                return snapshot, words
            self._damaged.add(path)
            words.append(f"{path}: damaged, its content is not what its name says (step {step})")
        return None, words

    def tidy(self) -> None:
        """Remove what a killed process left half written; the run folder must be locked."""
        if self.folder.is_dir():
            remove_unfinished(self.folder)

    def exist(self) -> bool:
        """Whether there is one, whole or not."""
        return bool(self._named())

    def remove(self) -> None:
        """Remove all, and the folder: the model is written."""
        for _, path in self._named():
            path.unlink(missing_ok=True)
        self.tidy()
        if self.folder.is_dir():
            # What somebody else put there is not ours to remove.
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def _named(self) -> list[tuple[int, Path]]:
        """(step, path), newest first."""
        found: list[tuple[int, Path]] = []
        for path in self.folder.glob("step-*"):
            match = _NAME.fullmatch(path.name)
            if match:
                found.append((int(match[1]), path))
        return sorted(found, reverse=True)


def _read(path: Path) -> Snapshot | None:
    """A snapshot, None where the content is not what the name says."""
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found not in path.name:
            return None
        with safe_open(path, framework="pt") as content:
            facts = json.loads(content.metadata()["facts"])
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    return Snapshot(step=facts.pop("step"), tensors=tensors, facts=facts)


def training_tensors(
    network: Network, optimizer: torch.optim.Optimizer, order: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """Yield weights, optimiser moments and random states by name; nothing is copied."""
    for name, value in network.state_dict().items():
        if not name.startswith(_FROZEN):
            yield f"network/{name}", value
    for name, parameter in network.trainable().items():
        for moment, value in optimizer.state[parameter].items():
            yield f"optimizer/{moment}/{name}", value
    yield "random/order", order.get_state()
    yield "random/cpu", torch.get_rng_state()
    if network.feature_scale.is_cuda:
        yield "random/cuda", torch.cuda.get_rng_state(network.feature_scale.device)


@torch.no_grad()
def restore_training(
    tensors: Mapping[str, Tensor],
    network: Network,
    optimizer: torch.optim.Optimizer,
    order: torch.Generator,
) -> None:
    """Put what `training_tensors` gave back where it came from; layouts in memory stay."""
    own, parameters = network.state_dict(), network.trainable()
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if kind == "network":
            own[name].copy_(value)
        elif kind == "optimizer":
            moment, _, name = name.partition("/")
            parameter = parameters[name]
            # The step count is a number on the CPU, the moments lie as their parameter does.
            kept = value if value.ndim == 0 else torch.empty_like(parameter).copy_(value)
            optimizer.state[parameter][moment] = kept
    order.set_state(tensors["random/order"])
    torch.set_rng_state(tensors["random/cpu"])
    if network.feature_scale.is_cuda:
        torch.cuda.set_rng_state(tensors["random/cuda"], network.feature_scale.device)
