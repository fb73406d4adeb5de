"""The model as a frozen, validated value: presets and every ablation switch.

Orders of tuples: everything that belongs to a decoder stage is listed from deep (stride 32) to
shallow (stride 4), as the decoder runs.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from mambaadv2.errors import ConfigError

Paths = Literal["both", "recurrence", "matrix", "none"]
Frequency = Literal["wavelet", "fft", "none"]
Order = Literal["hilbert", "raster", "boustrophedon", "zorder", "zigzag"]
Fusion = Literal["beside", "concat"]
Score = Literal["cosine", "whitened"]

STAGE_STRIDES = (32, 16, 8, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What is built. Fields are marked by where they come from: [paper] MambaADv2, [lineage] its
    ancestors (MambaAD, Mamba-3, MobileMamba), [ours] our choice."""

    encoder: str = "resnet34"
    """timm name of the frozen encoder. [lineage]"""
    image_size: tuple[int, int] = (256, 256)
    """Height and width of the network's input in pixels, multiples of 32. [lineage: 256]"""
    dims: tuple[int, ...] = (512, 256, 128, 64)
    """Channels of the stages at strides 32, 16, 8, (4); all but the first rebuild. [lineage]"""
    modules: tuple[tuple[int, ...], ...] = ((3,), (2, 2), (2, 2, 2), (3,))
    """HSS blocks of every DSS module of each stage. [lineage: depths 3/4/6/3]"""
    directions: tuple[int, ...] = (1, 2, 4, 8)
    """Scan directions of each stage, 1, 2, 4 or 8: SAPS. [paper; the numbers are ours]"""
    order: Order = "hilbert"
    """Scan order that the directions are derived from. [lineage]"""
    direction_weights: bool = True
    """Learned, image-dependent weights of the directions. [ours]"""
    paths: Paths = "both"
    """Computational paths of an HSS block; "none" leaves the local branches alone. [paper: both]"""
    rotary: bool = True
    """Data-dependent rotation of the recurrence (Mamba-3); False is Mamba-2's. [lineage]"""
    trapezoid: bool = True
    """Trapezoidal update (Mamba-3); False is Mamba-2's. [lineage]"""
    frequency: Frequency = "wavelet"
    """Frequency enhancement of the depth-wise convolutions. [paper; the transform is lineage]"""
    local_kernels: tuple[int, ...] = (5, 7)
    """Kernel sizes of the local branches. [lineage]"""
    band_kernel: int | None = None
    """Kernel of the convolution on wavelet bands; None takes the branch's own. [lineage: None]"""
    fusion: Fusion = "beside"
    """Whether the HSS blocks stand beside the local branches' convolution or are concatenated into
    it as in the ancestor. [ours; "concat" is lineage]"""
    head_dim: int = 32
    """P. [ours]"""
    state_dim: int = 32
    """N. [ours]"""
    expand: int = 2
    """Inner channels of an HSS block as a multiple of the stage's. [lineage]"""
    rotary_fraction: float = 0.5
    """Part of N that rotates. [lineage]"""
    drop_path: float = 0.2
    """Largest stochastic depth; grows linearly from 0 over the blocks. [lineage]"""
    score: Score = "cosine"
    """Residual to score: the paper's cosine, or whitened by its covariance on held-out images."""
    sigma: float = 4.0
    """Gaussian smoothing of the map in pixels of the network's input. [lineage]"""

    def __post_init__(self) -> None:
        _check_types(self)
        _check_choices(self)
        _check_stages(self)
        _check_numbers(self)

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the rebuilt features, deep to shallow."""
        return STAGE_STRIDES[1 : len(self.dims)]

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> ModelConfig:
        """Build from parsed JSON; missing fields take the default, unknown ones are refused."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                close = difflib.get_close_matches(name, names, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ConfigError(f"model config: unknown field {name!r}{hint}")
        return cls(**{name: _as_tuple(value) for name, value in values.items()})  # type: ignore[arg-type]


def _as_tuple(value: object) -> object:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, (list, tuple)) else value


def _check_types(config: ModelConfig) -> None:
    """Refuse by name what JSON can hold and arithmetic cannot."""
    for name in ("image_size", "dims", "directions", "local_kernels"):
        if not _is_whole(getattr(config, name)):
            raise ConfigError(f"{name}: expected whole numbers, got {getattr(config, name)!r}")
    modules: object = config.modules
    if not isinstance(modules, tuple) or not all(map(_is_whole, modules)):
        raise ConfigError(f"modules: expected whole numbers per stage, got {modules!r}")
    for name in ("head_dim", "state_dim", "expand"):
        value = getattr(config, name)
        if type(value) is not int or value < 1:
            raise ConfigError(f"{name}: expected a positive integer, got {value!r}")
    for name in ("rotary_fraction", "drop_path", "sigma"):
        value = getattr(config, name)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ConfigError(f"{name}: expected a number, got {value!r}")


def _is_whole(value: object) -> bool:
    return isinstance(value, tuple) and all(type(item) is int for item in value)


def _check_choices(config: ModelConfig) -> None:
    choices = {
        "order": Order, "paths": Paths, "frequency": Frequency, "fusion": Fusion, "score": Score,
    }  # fmt: skip
    for name, literal in choices.items():
        value = getattr(config, name)
        if value not in get_args(literal):
            allowed = ", ".join(map(repr, get_args(literal)))
            raise ConfigError(f"{name}: expected one of {allowed}; got {value!r}")
    for name in ("direction_weights", "rotary", "trapezoid"):
        if not isinstance(getattr(config, name), bool):
            raise ConfigError(f"{name}: expected true or false, got {getattr(config, name)!r}")
    if not isinstance(config.encoder, str) or not config.encoder:
        raise ConfigError(f"encoder: expected the name of a timm model, got {config.encoder!r}")


def _check_stages(config: ModelConfig) -> None:
    stages = len(config.dims)
    if stages not in (3, 4):
        raise ConfigError(
            f"dims: expected 3 stages (ends at stride 8) or 4 (ends at stride 4), got {stages}"
        )
    for name in ("modules", "directions"):
        if len(getattr(config, name)) != stages:
            raise ConfigError(
                f"{name}: expected one entry per stage of dims ({stages}), "
                f"got {len(getattr(config, name))}"
            )
    for dim in config.dims:
        if dim < 1 or (dim * config.expand) % config.head_dim:
            raise ConfigError(
                f"dims: {dim} x expand {config.expand} must be a multiple of head_dim "
                f"{config.head_dim}"
            )
    for stage in config.modules:
        if not stage or min(stage) < 1:
            raise ConfigError(
                f"modules: every DSS module needs at least one HSS block, got {stage}"
            )
    for count in config.directions:
        if count not in (1, 2, 4, 8):
            raise ConfigError(f"directions: expected 1, 2, 4 or 8, got {count}")


def _check_numbers(config: ModelConfig) -> None:
    if len(config.image_size) != 2 or any(side < 32 or side % 32 for side in config.image_size):
        raise ConfigError(
            f"image_size: expected (height, width), both multiples of 32, got {config.image_size}"
        )
    if config.state_dim % 4:
        raise ConfigError(f"state_dim: expected a multiple of 4, got {config.state_dim}")
    if not 0.0 <= config.rotary_fraction <= 1.0:
        raise ConfigError(f"rotary_fraction: expected 0..1, got {config.rotary_fraction}")
    if int(config.state_dim * config.rotary_fraction) % 2:
        raise ConfigError("rotary_fraction: must leave an even number of rotated state dimensions")
    if not 0.0 <= config.drop_path < 1.0:
        raise ConfigError(f"drop_path: expected 0 <= drop_path < 1, got {config.drop_path}")
    if not config.sigma >= 0.0:
        raise ConfigError(f"sigma: expected a number of pixels >= 0, got {config.sigma}")
    if not config.local_kernels or any(k < 1 or k % 2 == 0 for k in config.local_kernels):
        raise ConfigError(f"local_kernels: expected odd sizes, got {config.local_kernels}")
    band = config.band_kernel
    if band is not None and (type(band) is not int or band < 1 or band % 2 == 0):
        raise ConfigError(f"band_kernel: expected an odd size or none, got {band!r}")
