"""What a model is made of and what one image costs, by part; `mambaadv2 info` prints it.

FLOPs count a multiply-add as 2, as torch's counter does. Papers often print multiply-adds under
that name, MambaAD's among them: halve these numbers to compare. Counted: convolutions, linear
layers and matrix products. Not counted: norms, activations, resampling, Fourier transforms and
whatever else costs a constant per value.

Layers are measured on one forward pass. The scan is counted in closed form, because a fused kernel
is invisible to torch's counter; a test holds the formulas to what it sees of the torch forms.
Linear layers that the decoder runs as 1x1 convolutions are linear layers here all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mambaadv2.model.config import STAGE_STRIDES, ModelConfig
from mambaadv2.model.decoder import HSS, PatchExpand
from mambaadv2.model.encoder import build_encoder
from mambaadv2.model.network import Network
from mambaadv2.model.presets import preset_config
from mambaadv2.scan import DEFAULT_CHUNK, torch_form


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Operations for one image, 2 per multiply-add, by what needs them."""

    convolution: int = 0
    linear: int = 0
    recurrence: int = 0
    """Path R: the scan, all directions."""
    matrix: int = 0
    """Path M."""
    other: int = 0
    """Products outside layers: the attention of a transformer encoder."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.convolution + self.linear + self.recurrence + self.matrix + self.other


@dataclass(frozen=True, slots=True)
class _Measured:
    """Operations that torch counts in a module, its children included."""

    total: int
    convolution: int
    """Those of them that a convolution kernel does, `pointwise` included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartInfo:
    """One part of the network: its number of parameters, whether they learn, its operations."""

    name: str
    note: str
    """Its size, for people."""
    parameters: int
    trainable: bool
    flops: Flops


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A model by parts; every parameter belongs to exactly one part."""

    config: ModelConfig
    encoder: PartInfo
    neck: PartInfo
    stages: tuple[PartInfo, ...]
    """Of the decoder, deep to shallow, each with the patch expansion before it."""
    outputs: PartInfo
    """The projections to the encoder's channels."""

    @property
    def parts(self) -> tuple[PartInfo, ...]:
        """All parts in the order in which an image passes them."""
        return (self.encoder, self.neck, *self.stages, self.outputs)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(part.parameters for part in self.parts)

    @property
    def trainable(self) -> int:
        """Number of parameters that learn."""
        return sum(part.parameters for part in self.parts if part.trainable)

    @property
    def flops(self) -> Flops:
        """Operations of the whole model."""
        parts = [part.flops for part in self.parts]
        return Flops(
            convolution=sum(flops.convolution for flops in parts),
            linear=sum(flops.linear for flops in parts),
            recurrence=sum(flops.recurrence for flops in parts),
            matrix=sum(flops.matrix for flops in parts),
            other=sum(flops.other for flops in parts),
        )


def describe(preset: str, encoder: str | None = None, image_size: int | None = None) -> str:
    """Table of a preset's parts, parameters and operations, for people.

    encoder, image_size: instead of the preset's; image_size is the side of a square in pixels.
    Raises `ConfigError` for an unknown preset or encoder, or a side that is no multiple of 32.
    """
    size = None if image_size is None else (image_size, image_size)
    return _table(preset, model_info(preset_config(preset, encoder=encoder, image_size=size)))


def model_info(config: ModelConfig) -> ModelInfo:
    """Parameters and operations of the model, for one image of `config.image_size`.

    Needs no weights and no network access, and leaves torch's random state as it was. Raises
    `ConfigError` for an encoder that timm does not have.
    """
    with torch.random.fork_rng(devices=[]):
        body = build_encoder(config.encoder, pretrained=False, image_size=config.image_size)
        network = Network(config, body).eval()
    measured = _measure(network)
    encoder = _part("encoder", config.encoder, [network.encoder], measured)
    rest = measured[network.encoder].total - encoder.flops.total
    decoder = network.decoder
    stages: list[PartInfo] = []
    for i, stage in enumerate(decoder.stages):
        height, width = (side // STAGE_STRIDES[i] for side in config.image_size)
        blocks = [block for block in stage.modules() if isinstance(block, HSS)]
        stages.append(
            _part(
                f"decoder, stride {STAGE_STRIDES[i]}",
                f"{config.dims[i]} x {height} x {width}, {_count(len(blocks), 'block')}, "
                f"{_count(config.directions[i], 'direction')}",
                [*decoder.expands[max(0, i - 1) : i], stage],
                measured,
                recurrence=sum(recurrence_flops(block, height * width) for block in blocks),
                matrix=sum(matrix_flops(block, height * width) for block in blocks),
            )
        )
    return ModelInfo(
        config=config,
        encoder=_part("encoder", config.encoder, [network.encoder], measured, other=rest),
        neck=_part("neck", f"to {config.dims[0]} channels", [network.neck], measured),
        stages=tuple(stages),
        outputs=_part(
            "output projections",
            f"to {', '.join(map(str, network.channels[::-1]))} channels",
            list(decoder.heads),
            measured,
        ),
    )


def recurrence_flops(block: HSS, length: int) -> int:
    """Operations of path R over `length` positions, all directions.

    Per head and direction 2 c^2 (N + P) in each chunk of c tokens, that is 2 L c (N + P), and
    4 L N P for the states between chunks; as one masked matrix 2 L^2 (N + P). The last chunk is
    filled up. Counted as torch's forms compute it, whatever backend runs here: the number belongs
    to the model and not to a machine.
    """
    config = block.config
    if config.paths not in ("both", "recurrence"):
        return 0
    p, n = config.head_dim, config.state_dim
    form, _ = torch_form(length, p, n)
    chunk = length if form == "quadratic" else min(DEFAULT_CHUNK, length)
    filled = -(-length // chunk) * chunk
    states = 4 * filled * n * p if filled > chunk else 0
    return block.directions * block.heads * (2 * filled * chunk * (n + p) + states)


def matrix_flops(block: HSS, length: int) -> int:
    """Operations of path M over `length` positions: 4 L N P per head, whatever the directions."""
    config = block.config
    if config.paths not in ("both", "matrix"):
        return 0
    return 4 * length * config.state_dim * config.head_dim * block.heads


def _attention_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
) -> int:
    """Two products: queries (b, h, L, d) with keys, weights with values."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[-2] * (width + value[-1])


CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
"""What torch's counter knows only since 2.15."""


def _measure(network: Network) -> dict[nn.Module, _Measured]:
    """Count every module's operations on one forward pass."""
    with (
        FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter,
        torch.no_grad(),
    ):
        network(torch.zeros(1, 3, *network.config.image_size))
    counts = counter.get_flop_counts()
    measured: dict[nn.Module, _Measured] = {}
    for name, module in network.named_modules():
        by_kind = counts.get(f"Network.{name}", {})
        convolution = by_kind.get(torch.ops.aten.convolution, 0)
        measured[module] = _Measured(sum(by_kind.values()), convolution)
    return measured


def _part(
    name: str,
    note: str,
    modules: Sequence[nn.Module],
    measured: Mapping[nn.Module, _Measured],
    *,
    recurrence: int = 0,
    matrix: int = 0,
    other: int = 0,
) -> PartInfo:
    """Sum up modules: layers as measured, everything else as given."""
    parameters = [p for module in modules for p in module.parameters()]
    layers = [layer for module in modules for layer in module.modules()]
    linear = sum(measured[layer].total for layer in layers if isinstance(layer, nn.Linear))
    return PartInfo(
        name=name,
        note=note,
        parameters=sum(p.numel() for p in parameters),
        trainable=any(p.requires_grad for p in parameters),
        flops=Flops(
            convolution=_convolutions(layers, measured),
            linear=linear + _pointwise(layers, measured),
            recurrence=recurrence,
            matrix=matrix,
            other=other,
        ),
    )


def _convolutions(layers: Iterable[nn.Module], measured: Mapping[nn.Module, _Measured]) -> int:
    return sum(measured[layer].total for layer in layers if isinstance(layer, nn.Conv2d))


def _pointwise(layers: Iterable[nn.Module], measured: Mapping[nn.Module, _Measured]) -> int:
    """Operations of `pointwise`: what is convolved in its callers outside their convolutions."""
    return sum(
        measured[layer].convolution - _convolutions(layer.modules(), measured)
        for layer in layers
        if isinstance(layer, HSS | PatchExpand)
    )


def _table(preset: str, info: ModelInfo) -> str:
    height, width = info.config.image_size
    flops = info.flops
    header = ["part", "", "parameters", "GFLOPs", "convolution", "linear", "path R", "path M"]
    header += ["attention"] if flops.other else []
    rows = [
        header,
        *(_row(part.name, part.note, part.parameters, part.flops) for part in info.parts),
    ]
    rows.append(_row("total", "", info.parameters, flops))
    cut = [row[: len(header)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cut, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(size) if i < 2 else cell.rjust(size)
            for i, (cell, size) in enumerate(zip(row, widths, strict=True))
        )
        for row in cut
    ]
    rule = "-" * len(lines[0])
    frozen = info.parameters - info.trainable
    return "\n".join(
        [
            f"Preset {preset} with encoder {info.config.encoder}, "
            f"one image of {height} x {width} pixels",
            "",
            lines[0],
            rule,
            *lines[1:-1],
            rule,
            lines[-1],
            "",
            f"Trained: {info.trainable / 1e6:.2f} M parameters. Frozen (the encoder): "
            f"{frozen / 1e6:.2f} M.",
            f"A multiply-add counts as 2 FLOPs; papers often count it as 1, that is "
            f"{flops.total / 2e9:.2f} G here.",
            "Path R is the scan in all directions, path M the matrix path.",
            "Norms, activations and resampling are not counted.",
        ]
    )


def _row(name: str, note: str, parameters: int, flops: Flops) -> list[str]:
    kinds = (flops.convolution, flops.linear, flops.recurrence, flops.matrix, flops.other)
    numbers = [f"{number / 1e9:.3f}" if number else "-" for number in (flops.total, *kinds)]
    return [name, note, f"{parameters / 1e6:.3f} M", *numbers]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
