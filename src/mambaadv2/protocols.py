"""The rules by which numbers are measured; those of different rules cannot be compared.

"exact" is ours and the default. The other two repeat what the tables of the field were made with,
so that a number can stand beside them; they keep the coarse steps of their originals. Sources:

- ader: the ADer benchmark (Zhang et al. 2024, util/metric.py) and MambaAD (He et al., NeurIPS
  2024), which was evaluated with it, AUPRO in 100 steps.
- dinomaly: Dinomaly (Guo et al., CVPR 2025, dataset.py and utils.py).

What stays ours in all of them: an image's label is the data set's, where ADer takes an image for
good whose mask vanishes when it is made small; and what the network itself does between an image
and its map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mambaadv2.errors import ConfigError
from mambaadv2.names import did_you_mean

Name = Literal["exact", "ader", "dinomaly"]
MaskRule = Literal["as drawn", "bilinear > 0.5", "nearest > 0"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How an image becomes a map and a score, and these become metrics. Sizes: (height, width)."""

    name: Name
    resize: tuple[int, int] | None = None
    """Size of image and mask before anything else, bilinear; None leaves them as they are."""
    crop: tuple[int, int] | None = None
    """What is then kept around the centre; None keeps all."""
    map_size: tuple[int, int] | None = None
    """Size at which map and mask are compared; None is the image's own."""
    mask_rule: MaskRule = "as drawn"
    """How a mask that was made smaller becomes True and False."""
    blur: tuple[int, float] | None = None
    """(pixels, sigma) of a Gaussian in place of the model's own; zeros lie beyond the border."""
    top_share: float | None = None
    """The image score is the mean of this share of the highest pixels; None takes the highest."""
    f1_steps: int | None = None
    """Thresholds for pixel F1 and IoU, even from the class's lowest score to its highest; None
    takes every score."""
    aupro_steps: int | None = None
    """Likewise for AUPRO, the highest score left out; None takes every score."""
    aupro_stretch: Literal["none", "from 0", "from the first"] = "none"
    """Which part of the false positive rates below `fpr_limit` is stretched to 0..1: "none" cuts
    at the limit itself, by a straight line between the steps around it."""
    fpr_limit: float = 0.3

    def rules(self) -> dict[str, str]:
        """The rules in words, in the order in which they apply."""
        return {
            "image": _image_words(self),
            "mask": self.mask_rule,
            "compared": "in the image's own size" if self.map_size is None else _x(self.map_size),
            "smoothing": "the model's own"
            if self.blur is None
            else f"Gaussian, {self.blur[0]} pixels, sigma {self.blur[1]:g}",
            "image score": "highest pixel"
            if self.top_share is None
            else f"mean of the highest {self.top_share:.0%} of the pixels",
            "pixel F1 and IoU": "over all thresholds"
            if self.f1_steps is None
            else f"over {self.f1_steps} thresholds, even from the class's lowest to highest score",
            "AUPRO": _aupro_words(self),
            "regions": "components of 8 neighbours",
            "mean": "of the classes",
        }

    def line(self) -> str:
        """Name and rules in one line, for under a table."""
        return f"{self.name}: " + "; ".join(f"{name} {said}" for name, said in self.rules().items())


EXACT = Protocol(name="exact")
ADER = Protocol(
    name="ader",
    resize=(256, 256),
    map_size=(256, 256),
    mask_rule="bilinear > 0.5",
    f1_steps=21,
    aupro_steps=100,
    aupro_stretch="from the first",
)
DINOMALY = Protocol(
    name="dinomaly",
    resize=(448, 448),
    crop=(392, 392),
    map_size=(256, 256),
    mask_rule="nearest > 0",
    blur=(5, 4.0),
    top_share=0.01,
    aupro_steps=200,
    aupro_stretch="from 0",
)

PROTOCOLS: Mapping[str, Protocol] = {p.name: p for p in (EXACT, ADER, DINOMALY)}


def protocol_named(name: str) -> Protocol:
    """The protocol of that name; `ConfigError` for any other.

    >>> protocol_named("ader").map_size
    (256, 256)
    """
    if name not in PROTOCOLS:
        hint = did_you_mean(name, PROTOCOLS)
        raise ConfigError(f"protocol: expected {', '.join(PROTOCOLS)}, got {name!r}{hint}")
    return PROTOCOLS[name]


def _image_words(protocol: Protocol) -> str:
    if protocol.resize is None:
        return "as it is"
    words = f"resized to {_x(protocol.resize)}"
    return words if protocol.crop is None else f"{words}, centre {_x(protocol.crop)} kept"


def _aupro_words(protocol: Protocol) -> str:
    to = f"to a false positive rate of {protocol.fpr_limit:g}"
    if protocol.aupro_steps is None:
        return f"{to}, over all thresholds"
    return f"{to}, over {protocol.aupro_steps} thresholds, what is below it stretched to 1"


def _x(size: tuple[int, int]) -> str:
    return " x ".join(map(str, size))
