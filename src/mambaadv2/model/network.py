"""The whole network: frozen encoder, neck, decoder; its start values and its loss.

Feature maps are listed shallow to deep everywhere outside the decoder. They are divided by one
number per scale (their standard deviation over training images) so that every encoder meets the
same loss and gradient-norm limits; cosine and relative channel weights are untouched (our choice).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaadv2.model.config import ModelConfig
from mambaadv2.model.decoder import DT_MAX, DT_MIN, HSS, Decoder
from mambaadv2.model.encoder import FrozenEncoder
from mambaadv2.model.neck import Neck

LOSS_WEIGHT = 5.0  # [lineage]
PCA_GAIN = 0.3  # part of each component's deviation that the start already spans [ours, measured]

Features = tuple[Tensor, ...]


class Network(nn.Module):
    """Features of an image and their reconstruction.

    `features(images)`: images (B, 3, H, W) in [0, 1] to maps (B, C_i, H/s_i, W/s_i), shallow to
    deep. `reconstruct(features)`: maps of the same shapes. Only neck and decoder train.
    """

    feature_scale: Tensor

    def __init__(self, config: ModelConfig, encoder: FrozenEncoder) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.channels = encoder.channels[-len(config.strides) :]
        self.neck = Neck(self.channels, config.dims[0])
        self.decoder = Decoder(config, self.channels[::-1])
        self.register_buffer("feature_scale", torch.ones(len(self.channels)))
        init_weights(self)
        # Channels last is what torch's CPU kernels are fast in; strides only, no other effect.
        self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def features(self, images: Tensor) -> Features:
        """Maps of the frozen encoder at the scales that are rebuilt, as they are cached."""
        maps = self.encoder(images)
        return tuple(maps[-len(self.channels) :])

    def scaled(self, features: Features) -> Features:
        """Features divided by their scale, in the layout that the decoder is fast in."""
        return tuple(
            (f.float() / s).contiguous(memory_format=torch.channels_last)
            for f, s in zip(features, self.feature_scale, strict=True)
        )

    def reconstruct(self, scaled: Features) -> Features:
        """Rebuild scaled features, shallow to deep."""
        return tuple(reversed(self.decoder(self.neck(scaled))))

    def forward(self, images: Tensor) -> tuple[Features, Features]:
        """Images (B, 3, H, W) in [0, 1] to (scaled features, their reconstructions)."""
        scaled = self.scaled(self.features(images))
        return scaled, self.reconstruct(scaled)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Every parameter that learns, by name: all but the encoder's."""
        return {n: p for n, p in self.named_parameters() if not n.startswith("encoder.")}


def reconstruction_loss(features: Features, rebuilt: Features) -> dict[str, Tensor]:
    """Loss terms by scale: 5 x mean squared error (MambaAD); their sum is the loss."""
    return {
        f"mse_{f.shape[-2]}x{f.shape[-1]}": LOSS_WEIGHT * F.mse_loss(r.float(), f)
        for f, r in zip(features, rebuilt, strict=True)
    }


def init_weights(network: Network) -> None:
    """Start values of what learns; norms keep torch's, wavelet scales start at 0.1, fft gains at 0.

    | where                       | value                                                   |
    |-----------------------------|---------------------------------------------------------|
    | neck convolutions           | Kaiming normal, fan-out, ReLU (MambaAD)                 |
    | decoder convolutions        | Kaiming normal, fan-in; biases 0                        |
    | linear layers               | normal, deviation 1/sqrt(fan-in); biases 0 (our choice) |
    | dt_bias                     | inverse softplus of exp(U(ln 1e-3, ln 1e-1)) (Mamba-3)  |
    | b_bias, c_bias, skip        | 1 (Mamba-3)                                             |
    | gate_bias                   | 0: path M starts at half weight (our choice)            |
    | direction_head              | 0: equal weights (our choice)                           |
    | output projections          | `pca_start` replaces them once features are known       |
    """
    for name, module in network.named_modules():
        if name.startswith("encoder"):
            continue
        if isinstance(module, nn.Conv2d):
            mode: Literal["fan_in", "fan_out"] = "fan_out" if name.startswith("neck") else "fan_in"
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, HSS):
            span = math.log(DT_MAX) - math.log(DT_MIN)
            dt = torch.exp(torch.rand_like(module.dt_bias) * span + math.log(DT_MIN)).clamp(
                min=1e-4
            )
            module.dt_bias.data.copy_(dt + torch.log(-torch.expm1(-dt)))
            if module.direction_head is not None:
                nn.init.zeros_(module.direction_head.weight)


@torch.no_grad()
def pca_start(network: Network, features: Features) -> None:
    """Start the output projections at the mean and the leading components of the features.

    features: raw maps of some training images (64 are plenty). bias = mean feature; weights =
    eigenvectors x sqrt(eigenvalue) x 0.3, so that a unit-scale hidden state spans the features from
    the first step. Worth more than any other change of a short run (our choice, see LOG.md).
    """
    scaled = network.scaled(features)
    for head, feature in zip(reversed(network.decoder.heads), scaled, strict=True):
        assert isinstance(head, nn.Conv2d)
        assert head.bias is not None
        rows = feature.permute(0, 2, 3, 1).flatten(0, 2).double()
        mean = rows.mean(dim=0)
        covariance = (rows - mean).T @ (rows - mean) / len(rows)
        values, vectors = torch.linalg.eigh(covariance)
        rank = min(head.in_channels, len(values))
        weight = vectors.flip(1)[:, :rank] * values.flip(0)[:rank].clamp(min=0).sqrt() * PCA_GAIN
        head.weight.zero_()
        head.weight[:, :rank, 0, 0] = weight.float()
        head.bias.copy_(mean.float())


@torch.no_grad()
def set_feature_scale(network: Network, features: Features) -> None:
    """Set one divisor per scale: the deviation of the given raw maps over everything."""
    for i, feature in enumerate(features):
        deviation = float(feature.double().std(correction=0))
        network.feature_scale[i] = deviation if deviation > 0 else 1.0
