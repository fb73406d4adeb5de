"""A run folder on disk: weights as safetensors, everything else as JSON; no pickle, ever.

`model.json` is written last and carries the weights' SHA-256, so a folder with a matching pair is
complete and anything else is refused. Training removes an older pair before it starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mambaadv2.calibrate import ClassCalibration, recorded_calibration, threshold_sentence
from mambaadv2.errors import CheckpointError, ConfigError
from mambaadv2.files import EVALUATION, SUSPECTS, write_atomically
from mambaadv2.foreign import explain_foreign
from mambaadv2.model.config import ModelConfig
from mambaadv2.model.encoder import EncoderProvenance, build_encoder
from mambaadv2.model.network import Network
from mambaadv2.model.scoring import Scorer

SCHEMA_VERSION = 3
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
# What is written beside a model and about it.
CALIBRATION, LABELLED = "calibration.json", "labelled.json"
MADE_OF_IT = (EVALUATION, CALIBRATION, LABELLED, SUSPECTS, "MODEL_CARD.md")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """All of `model.json` but the schema version and the hash."""

    model: ModelConfig
    encoder: EncoderProvenance
    classes: tuple[str, ...]
    thresholds: Mapping[str, float]
    """Per class, raw score units."""
    calibration_images: Mapping[str, int]
    """Held-out normal images behind each threshold."""
    calibration_scores: Mapping[str, tuple[float, ...]]
    """Their raw scores, which are also the maxima of their maps, in the order of `calibration.json`
    where the run was calibrated again, else of `data.json`; none for a run older than schema 2."""
    calibration_kinds: Mapping[str, str]
    """Which rule made the threshold: a `calibrate.Kind`, "labelled" with known defects, or
    "earlier", the rule before schema 3."""
    calibration_trimmed: Mapping[str, tuple[int, ...]]
    """Positions of the scores that were left out because their images look mislabelled."""
    false_alarm_rate: float
    """Wished share of good images flagged."""
    false_alarm_confidence: float | None
    """Share of calibrations for which it is to hold; None: on average over them."""
    leave_one_out: bool
    """Whether the scorer was fitted on the held-out images too, each scored by the others."""
    colour_scale: tuple[float, float]
    """low and high of map / threshold in heat maps."""
    calibration_labelled: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of classes of kind "labelled": the fields of a `calibrate.LabelledThreshold` but the
    threshold itself."""
    calibration_trim: bool = True
    """Whether images that look mislabelled would have been left out."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """How it was made, for people: steps, seconds, data fingerprint, package version."""

    def __post_init__(self) -> None:
        for name in (
            *("thresholds", "calibration_images", "calibration_scores", "calibration_kinds"),
            "calibration_trimmed",
        ):
            if set(getattr(self, name)) != set(self.classes):
                raise CheckpointError(
                    f"{name}: expected one entry per class {list(self.classes)}, "
                    f"got {sorted(getattr(self, name))}"
                )
        for name, value in self.thresholds.items():
            if not 0 < value < math.inf:
                raise CheckpointError(
                    f"thresholds: expected a number above 0 for {name}, got {value}"
                )
        if len(self.colour_scale) != 2 or not 0 <= self.colour_scale[0] < self.colour_scale[1]:
            raise CheckpointError(
                f"colour_scale: expected 0 <= low < high, got {self.colour_scale}"
            )
        if not set(self.calibration_labelled) <= set(self.classes):
            raise CheckpointError(
                f"calibration_labelled: expected some of the classes {list(self.classes)}, got "
                f"{sorted(self.calibration_labelled)}"
            )
        for name in self.classes:
            self.kept_scores(name)
            self.threshold_sentence(name)
            count = len(self.calibration_scores[name])
            if count not in (0, self.calibration_images[name]):
                raise CheckpointError(
                    f"calibration of {name}: expected a score for each of the "
                    f"{self.calibration_images[name]} calibration_images, got {count}"
                )

    def kept_scores(self, name: str) -> tuple[float, ...]:
        """Scores of a class's held-out images without those trimmed: what p-values rank among."""
        scores, trimmed = self.calibration_scores[name], self.calibration_trimmed[name]
        if not set(trimmed) <= set(range(len(scores))) or not all(map(math.isfinite, scores)):
            raise CheckpointError(
                f"calibration of {name}: expected finite scores and, trimmed, positions of some of "
                f"the {len(scores)}, got positions {list(trimmed)}"
            )
        return tuple(score for i, score in enumerate(scores) if i not in trimmed)

    def calibration(self, name: str) -> ClassCalibration | None:
        """What the threshold of a class promises; None for kinds that promise no rate."""
        with _as_checkpoint_error():
            return recorded_calibration(self._fields(), name)

    def threshold_sentence(self, name: str) -> str:
        """Which rule made the threshold of a class and what it promises, for people."""
        with _as_checkpoint_error():
            return threshold_sentence(self._fields(), name)

    @property
    def unseen_scores(self) -> dict[str, tuple[float, ...]]:
        """By class the scores that later images are exchangeable with, for a `DriftWatch`.

        None of a class, where the held-out images also fitted the scorer (`leave_one_out`): they
        are near, but a watch that compared with them would keep to no bound.
        """
        return {name: () if self.leave_one_out else self.kept_scores(name) for name in self.classes}

    def _fields(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


@contextlib.contextmanager
def _as_checkpoint_error() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def calibration_fields(
    classes: Mapping[str, ClassCalibration], scores: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """The fields of a `ModelCard` that calibration decides; all classes by one rule."""
    one = next(iter(classes.values()))
    return {
        "thresholds": {name: c.threshold for name, c in classes.items()},
        "calibration_images": {name: c.images for name, c in classes.items()},
        "calibration_scores": {name: tuple(scores[name]) for name in classes},
        "calibration_kinds": {name: c.kind for name, c in classes.items()},
        "calibration_trimmed": {name: c.trimmed for name, c in classes.items()},
        "false_alarm_rate": one.rate,
        "false_alarm_confidence": one.confidence,
        "leave_one_out": one.leave_one_out,
        "calibration_trim": one.trim,
        "calibration_labelled": {},
    }


def save_run(folder: Path, network: Network, scorer: Scorer, card: ModelCard) -> None:
    """Write both files of a run, each in one step."""
    from safetensors.torch import save

    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in _both(network, scorer).state_dict().items()
    }
    data = save(tensors, metadata={"format": "mambaadv2"})
    write_atomically(folder / WEIGHTS, data)
    write_card(folder, card, hashlib.sha256(data).hexdigest())


def write_card(folder: Path, card: ModelCard, weights_sha256: str) -> None:
    """Write or replace `model.json` in one step; the weights must be there and have that hash."""
    description = {
        "schema_version": SCHEMA_VERSION,
        "weights_sha256": weights_sha256,
        **dataclasses.asdict(card),
    }
    write_atomically(
        folder / DESCRIPTION, (json.dumps(description, indent=2, allow_nan=False) + "\n").encode()
    )


def remove_run(folder: Path) -> None:
    """Remove a run's model, description first, so that what remains is never taken for a run."""
    for name in (DESCRIPTION, *MADE_OF_IT, WEIGHTS):
        (folder / name).unlink(missing_ok=True)


def load_run(folder: Path, device: torch.device) -> tuple[Network, Scorer, ModelCard]:
    """Read a run folder; the network comes back in evaluation mode on `device`.

    Raises `CheckpointError` naming the file when it is missing, damaged, of a newer version or does
    not match its own description.
    """
    card, expected_hash = read_card(folder)
    tensors = _read_weights(folder / WEIGHTS, expected_hash)
    network = _build(card, folder / DESCRIPTION)
    scorer = make_scorer(card.model, network, len(card.classes))
    _load_strictly(_both(network, scorer), tensors, folder / WEIGHTS)
    network.eval().to(device)
    return network, scorer.eval().to(device), card


def _both(network: Network, scorer: Scorer) -> torch.nn.Module:
    """One module, for the tensor names: network.* and scorer.*"""
    return torch.nn.ModuleDict({"network": network, "scorer": scorer})


def _build(card: ModelCard, path: Path) -> Network:
    """The network of a card with weights that mean nothing yet."""
    # The caller's random state stays as it is: start values are drawn only to be overwritten.
    with torch.random.fork_rng(devices=[]):
        try:
            # Weights follow from the file, so neither a hub nor a package is asked for them.
            encoder = build_encoder(
                card.encoder.name, pretrained=False, image_size=card.model.image_size
            )
        except ConfigError as error:
            raise CheckpointError(f"{path}: its encoder cannot be built ({error})") from error
        encoder.provenance = card.encoder
        return Network(card.model, encoder)


def make_scorer(config: ModelConfig, network: Network, classes: int) -> Scorer:
    """An unfitted scorer that fits the network."""
    return Scorer(config.score, network.channels, classes, config.sigma, config.image_size)


def read_card(folder: Path) -> tuple[ModelCard, str]:
    """The description of a run and the SHA-256 that its weights must have."""
    path = folder / DESCRIPTION
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if not folder.exists():
            raise CheckpointError(f"{folder}: expected a run folder, there is none") from None
        if (folder / "config.json").exists():
            raise CheckpointError(
                f"{folder}: its training did not finish, found no {DESCRIPTION}; if it was "
                "interrupted, the command that began it goes on with --resume"
            ) from None
        raise CheckpointError(
            explain_foreign(folder)
            or f"{folder}: expected a run folder written by 'mambaadv2 train', found no "
            f"{DESCRIPTION}"
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(raw).__name__}")
    raw = _migrated(raw, path)
    try:
        expected_hash = str(raw.pop("weights_sha256"))
        model = raw.pop("model")
        # No field may take its default: a later default must not change an old model.
        absent = {f.name for f in dataclasses.fields(ModelConfig)} - set(model)
        if absent:
            raise KeyError(*sorted(absent))
        card = ModelCard(
            model=ModelConfig.from_dict(model),
            encoder=EncoderProvenance(**raw.pop("encoder")),
            classes=tuple(raw.pop("classes")),
            colour_scale=tuple(raw.pop("colour_scale")),
            calibration_scores={
                name: tuple(map(float, scores))
                for name, scores in raw.pop("calibration_scores").items()
            },
            calibration_trimmed={
                name: tuple(positions) for name, positions in raw.pop("calibration_trimmed").items()
            },
            **raw,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path}: missing or unknown field ({error})") from error
    if not isinstance(card.encoder.name, str):
        raise CheckpointError(f"{path}: encoder.name: expected a text, got {card.encoder.name!r}")
    return card, expected_hash


def _migrated(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """The description in today's form, without its version."""
    version = raw.pop("schema_version", None)
    if type(version) is not int or version < 1:
        raise CheckpointError(
            f"{path}: schema version {version!r}, expected a whole number from 1 to "
            f"{SCHEMA_VERSION}; this is not a model.json of mambaadv2"
        )
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: schema version {version}, this package reads up to {SCHEMA_VERSION}; "
            "it was written by a newer mambaadv2: upgrade this one"
        )
    try:
        for step in range(version, SCHEMA_VERSION):
            raw = _MIGRATIONS[step](raw)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: missing or unknown field ({error})") from error
    return raw


def _from_1(raw: dict[str, Any]) -> dict[str, Any]:
    """Schema 2 keeps the scores behind the thresholds; 1 kept their number only."""
    return {**raw, "calibration_scores": dict.fromkeys(raw["classes"], ())}


def _from_2(raw: dict[str, Any]) -> dict[str, Any]:
    """Schema 3 says what a threshold promises; before, it was the limit that is now "assumed"."""
    return {
        **raw,
        "calibration_kinds": dict.fromkeys(raw["classes"], "earlier"),
        "calibration_trimmed": dict.fromkeys(raw["classes"], ()),
        "false_alarm_rate": 0.01,
        "false_alarm_confidence": None,
        "leave_one_out": raw["model"]["score"] == "whitened",
    }


_MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1, 2: _from_2}
"""From the version to the next one."""


def _read_weights(path: Path, expected_hash: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    found = hashlib.sha256(data).hexdigest()
    if found != expected_hash:
        raise CheckpointError(
            f"{path}: damaged or not the file that {DESCRIPTION} describes "
            f"(SHA-256 {found[:12]}..., expected {expected_hash[:12]}...)"
        )
    try:
        return load(data)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from error


def _load_strictly(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    own = module.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or extra:
        raise CheckpointError(
            f"{path}: {len(missing)} missing tensors {missing[:3]}, {len(extra)} unknown tensors "
            f"{extra[:3]}; {DESCRIPTION} describes another model, or a file was edited: take the "
            "run folder as training wrote it"
        )
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, expected {tuple(own[name].shape)}"
            )
    module.load_state_dict(tensors)
