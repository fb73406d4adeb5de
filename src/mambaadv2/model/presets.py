"""Named model sizes. What they cost is printed by `mambaadv2 info` and measured in README.md."""

from __future__ import annotations

import dataclasses

from mambaadv2.errors import ConfigError
from mambaadv2.model.config import ModelConfig

PRESETS = ("lite", "r34")


def preset_config(
    name: str, *, encoder: str | None = None, image_size: tuple[int, int] | None = None
) -> ModelConfig:
    """Model config of a preset, with another encoder or input size where given.

    "r34": the paper's size. "lite": a packaged encoder that needs no network and a decoder that
    ends at stride 8, sized for training on a CPU within minutes (our choice, see LOG.md).
    """
    if name == "r34":
        config = ModelConfig()
    elif name == "lite":
        config = ModelConfig(
            encoder="tf_efficientnet_lite0",
            dims=(384, 192, 96),
            modules=((1,), (1,), (1,)),
            directions=(1, 1, 2),
            head_dim=64,
            state_dim=16,
            band_kernel=3,
            drop_path=0.0,
            score="whitened",
        )
    else:
        raise ConfigError(f"preset: expected one of {', '.join(PRESETS)}; got {name!r}")
    changes: dict[str, object] = {}
    if encoder is not None:
        changes["encoder"] = encoder
    if image_size is not None:
        changes["image_size"] = image_size
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]
