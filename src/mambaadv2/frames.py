"""Images, masks and maps as a protocol compares them; `protocols` has the rules in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mambaadv2.errors import ConfigError
from mambaadv2.image import resize_image
from mambaadv2.predict import ImageModel, Prediction, Predictor
from mambaadv2.protocols import Protocol


@dataclass(frozen=True, slots=True)
class Framed:
    """A model that is shown images as a protocol resizes and crops them."""

    model: ImageModel
    protocol: Protocol

    @property
    def classes(self) -> tuple[str, ...]:
        """Names that the model was trained on."""
        return self.model.classes

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """As `ImageModel.predict`; maps have the size of the protocol's images."""
        return self.model.predict([frame_image(rgb, self.protocol) for rgb in images])


class Comparison:
    """What of one image and its mask the metrics of a protocol compare.

    Decisions are those of the model as it is used: on the whole image, by its own score. Where a
    protocol crops or smooths in another way, the map that it ranks comes from a second look.
    """

    def __init__(self, model: ImageModel, protocol: Protocol) -> None:
        """Raise `ConfigError` where the protocol cannot be followed with this model."""
        self.protocol = protocol
        self.decider: ImageModel = model
        """What to predict files with."""
        self._second: Predictor | None = None
        if protocol.blur is not None:
            if not isinstance(model, Predictor):
                raise ConfigError(
                    f"protocol {protocol.name}: needs maps before smoothing, which only a run "
                    'folder or a `Predictor` gives; use "exact"'
                )
            self._second = model.unsmoothed()
        elif protocol.resize is not None:
            if isinstance(model, Predictor) and model.image_size != protocol.resize:
                size, own = (" x ".join(map(str, s)) for s in (protocol.resize, model.image_size))
                raise ConfigError(
                    f"protocol {protocol.name}: is defined for images of {size}, this model sees "
                    f'{own}; train one with --image-size {protocol.resize[0]}, or use "exact"'
                )
            self.decider = Framed(model, protocol)

    def map(self, rgb: NDArray[np.uint8], prediction: Prediction) -> NDArray[np.float32]:
        """The map (H, W) that is compared, of the image and what `decider` said of it."""
        if self._second is None:
            return prediction.map
        part = resize_image(frame_image(rgb, self.protocol), self._second.image_size)
        [found] = self._second.predict([part])
        assert self.protocol.map_size is not None
        assert self.protocol.blur is not None
        return blurred(interpolated(found.map, self.protocol.map_size), *self.protocol.blur)

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The mask at the size of `map`."""
        return frame_mask(mask, self.protocol)

    def score(self, values: NDArray[np.float32], prediction: Prediction) -> float:
        """The image's score: the prediction's own, or what the protocol makes of the map."""
        if self.protocol.map_size is None:
            return prediction.score
        return image_score(values, self.protocol)


def frame_image(rgb: NDArray[np.uint8], protocol: Protocol) -> NDArray[np.uint8]:
    """The part of an (H, W, 3) image that a protocol shows, at its size."""
    if protocol.resize is not None:
        rgb = resize_image(rgb, protocol.resize)
    return rgb if protocol.crop is None else _centre(rgb, protocol.crop)


def frame_mask(mask: NDArray[np.bool_], protocol: Protocol) -> NDArray[np.bool_]:
    """The mask (H, W) bool, resized and cropped like the image, at the size of the map."""
    if protocol.resize is None:
        return mask
    height, width = protocol.resize
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    values = np.array(grey.resize((width, height), Image.Resampling.BILINEAR))
    if protocol.crop is not None:
        values = _centre(values, protocol.crop)
    if protocol.mask_rule == "bilinear > 0.5":
        return values / np.float32(255) > 0.5
    assert protocol.map_size is not None
    rows, columns = (
        np.arange(new) * old // new
        for new, old in zip(protocol.map_size, values.shape, strict=True)
    )
    return values[np.ix_(rows, columns)] > 0


def image_score(values: NDArray[np.float32], protocol: Protocol) -> float:
    """The highest value of a map, or the mean of its highest share."""
    if protocol.top_share is None:
        return float(values.max())
    count = int(values.size * protocol.top_share)
    return float(np.partition(values, values.size - count, axis=None)[-count:].mean(dtype=float))


def interpolated(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A map (H, W) at another size, bilinear between the four nearest, without antialiasing.

    Pixel centres lie at half integers, as of torch's `interpolate` with `align_corners=False`.
    """
    if values.shape == size:
        return values
    for axis, new in enumerate(size):
        old = values.shape[axis]
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, None)
        low = np.minimum(at.astype(np.intp), old - 1)
        high = np.minimum(low + 1, old - 1)
        share = (at - low).astype(np.float32)
        share = share[:, None] if axis == 0 else share[None]
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return values


def blurred(values: NDArray[np.float32], pixels: int, sigma: float) -> NDArray[np.float32]:
    """A map under a Gaussian kernel of `pixels` x `pixels`, zeros beyond the border."""
    offsets = np.arange(pixels) - (pixels - 1) / 2
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    rows = ndimage.correlate1d(values, kernel, axis=0, mode="constant")
    smooth: NDArray[np.float32] = ndimage.correlate1d(rows, kernel, axis=1, mode="constant")
    return smooth


def _centre(values: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The middle of an image; of an odd rest the smaller half is above and left."""
    top, left = ((have - want) // 2 for have, want in zip(values.shape, size, strict=False))
    return values[top : top + size[0], left : left + size[1]]
