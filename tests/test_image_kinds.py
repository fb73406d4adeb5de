"""Every kind of pixel: converted as the docstring of `read_image` says, or refused by name."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mambaadv2.errors import ImageError
from mambaadv2.image import ImageHeader, read_header, read_image, read_mask

RNG = np.random.default_rng(1)
HEIGHT, WIDTH = 21, 35


def random(bands: int, kind: str) -> NDArray[Any]:
    """(H, W, bands) samples over the whole range of the type."""
    dtype = np.dtype(kind)
    if dtype.kind == "f":
        return RNG.random((HEIGHT, WIDTH, bands)).astype(dtype)
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, (HEIGHT, WIDTH, bands), dtype, endpoint=True)


def shown(samples: NDArray[Any]) -> NDArray[np.uint8]:
    """What the docstring promises for (H, W, 1 to 4) samples, in plain floating point."""
    top = 1.0 if samples.dtype.kind == "f" else 65535 if samples.dtype.itemsize > 1 else 255
    eight = np.rint(samples.astype(np.float64) / top * 255).astype(np.uint8)
    return np.repeat(eight[:, :, :1], 3, axis=2) if samples.shape[2] < 3 else eight[:, :, :3]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(rows: NDArray[Any], width: int, bits: int, kind: int, *extra: bytes) -> bytes:
    """A PNG of packed rows, (H, bytes of a row) uint8."""
    filtered = np.pad(rows, ((0, 0), (1, 0))).tobytes()
    header = struct.pack(">IIBBBBB", width, len(rows), bits, kind, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header),
            *extra,
            chunk(b"IDAT", zlib.compress(filtered)) + chunk(b"IEND", b""),
        ]
    )


def png_of(samples: NDArray[Any]) -> bytes:
    height, width, bands = samples.shape
    rows = np.frombuffer(samples.astype(samples.dtype.newbyteorder(">")).tobytes(), np.uint8)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[bands]
    return png(rows.reshape(height, -1), width, samples.dtype.itemsize * 8, kind)


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def smooth() -> Image.Image:
    """A picture that survives lossy compression."""
    y, x = np.mgrid[0:48, 0:64]
    return Image.fromarray(np.stack([x * 3, y * 4, 255 - x - y], axis=2).astype(np.uint8))


@pytest.mark.parametrize("bands", [1, 2, 3, 4], ids=["grey", "la", "rgb", "rgba"])
def test_twins_of_8_and_16_bits_are_equal(tmp_path: Path, bands: int) -> None:
    eight = random(bands, "u1")
    one = put(tmp_path / "8.png", png_of(eight))
    twin = put(tmp_path / "16.png", png_of(eight.astype("u2") * 257))
    image = read_image(one)
    np.testing.assert_array_equal(image, shown(eight))
    np.testing.assert_array_equal(read_image(twin), image)
    np.testing.assert_array_equal(read_mask(twin), read_mask(one))


@pytest.mark.parametrize("bands", [1, 2, 3, 4], ids=["grey", "la", "rgb", "rgba"])
def test_16_bit_png_is_exact(tmp_path: Path, bands: int) -> None:
    samples = random(bands, "u2")
    path = put(tmp_path / "x.png", png_of(samples))
    np.testing.assert_array_equal(read_image(path), shown(samples))
    assert read_header(path) == ImageHeader(WIDTH, HEIGHT, "PNG", bands, 16, 1)
    faint = (RNG.random(samples.shape) < 0.3).astype("u2")
    put(path, png_of(faint))
    np.testing.assert_array_equal(read_mask(path), faint[:, :, : 3 if bands > 2 else 1].any(axis=2))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_grey_and_palette_of_every_depth(tmp_path: Path, bits: int) -> None:
    count = 2**bits
    values = RNG.integers(0, count, (HEIGHT, WIDTH), dtype=np.uint8)
    every = np.unpackbits(values[:, :, None], axis=2)[:, :, 8 - bits :]
    rows = np.packbits(every.reshape(HEIGHT, -1), axis=1)
    path = put(tmp_path / "x.png", png(rows, WIDTH, bits, 0))
    np.testing.assert_array_equal(read_image(path)[:, :, 0], np.rint(values / (count - 1) * 255))
    np.testing.assert_array_equal(read_mask(path), values > 0)
    colours = RNG.integers(0, 256, (count, 3), dtype=np.uint8)
    palette = chunk(b"PLTE", colours.tobytes())
    # Transparency, which Pillow warns about in some forms, is dropped as alpha is.
    for extra in ([palette], [palette, chunk(b"tRNS", bytes(count))]):
        put(path, png(rows, WIDTH, bits, 3, *extra))
        np.testing.assert_array_equal(read_image(path), colours[values])
    assert read_header(path) == ImageHeader(WIDTH, HEIGHT, "PNG", 1, bits, 1)
    with pytest.raises(ImageError, match=r"x\.png: .* palette"):
        read_image(put(path, png(rows, WIDTH, bits, 3)))


def test_png_with_a_transparent_colour(tmp_path: Path) -> None:
    for bands, kind in itertools.product((1, 3), ("u1", "u2")):
        samples = random(bands, kind)
        first = samples[0, 0].astype(">u2").tobytes()
        whole = png_of(samples)
        content = whole[:33] + chunk(b"tRNS", first) + whole[33:]
        np.testing.assert_array_equal(read_image(put(tmp_path / "x", content)), shown(samples))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "YCbCr"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_modes(tmp_path: Path, mode: str, progressive: bool) -> None:
    path = tmp_path / "x.jpg"
    smooth().convert(mode).save(path, quality=95, progressive=progressive)
    expected = np.array((smooth().convert("L") if mode == "L" else smooth()).convert("RGB"))
    assert np.abs(read_image(path).astype(int) - expected).mean() < 4
    assert read_header(path).channels == {"L": 1, "CMYK": 4}.get(mode, 3)


def bmp(
    rows: bytes,
    bits: int,
    height: int,
    *,
    palette: bytes = b"",
    compression: int = 0,
    width: int = WIDTH,
    masks: Sequence[int] = (),
) -> bytes:
    offset = 54 + 4 * len(masks) + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    head += struct.pack(f"<{len(masks)}I", *masks)
    size = struct.pack("<IHHI", offset + len(rows), 0, 0, offset)
    return b"BM" + size + head + palette + rows


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bmp_palettes(tmp_path: Path, bits: int) -> None:
    values = RNG.integers(0, 2**bits, (HEIGHT, WIDTH), dtype=np.uint8)
    colours = RNG.integers(0, 256, (2**bits, 3), dtype=np.uint8)
    every = np.unpackbits(values[:, :, None], axis=2)[:, :, 8 - bits :].reshape(HEIGHT, -1)
    rows = np.packbits(every, axis=1)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
    palette = np.pad(colours[:, ::-1], ((0, 0), (0, 1))).tobytes()
    path = tmp_path / "x.bmp"
    put(path, bmp(rows[::-1].tobytes(), bits, HEIGHT, palette=palette))
    np.testing.assert_array_equal(read_image(path), colours[values])
    put(path, bmp(rows.tobytes(), bits, -HEIGHT, palette=palette))
    np.testing.assert_array_equal(read_image(path), colours[values])
    assert read_header(path) == ImageHeader(WIDTH, HEIGHT, "BMP", 1, bits, 1)


@pytest.mark.parametrize("bits", [24, 32])
def test_bmp_colours(tmp_path: Path, bits: int) -> None:
    samples = random(3, "u1")
    pixels = np.pad(samples[:, :, ::-1], ((0, 0), (0, 0), (0, bits // 8 - 3)))
    rows = pixels.reshape(HEIGHT, -1)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
    path = put(tmp_path / "x.bmp", bmp(rows[::-1].tobytes(), bits, HEIGHT))
    np.testing.assert_array_equal(read_image(path), samples)


def test_bmp_of_16_bits_and_run_lengths(tmp_path: Path) -> None:
    values = RNG.integers(0, 2**16, (HEIGHT, 36), dtype=np.uint16)
    masks = (0xF800, 0x7E0, 0x1F)
    content = bmp(values[::-1].tobytes(), 16, HEIGHT, compression=3, width=36, masks=masks)
    image = read_image(put(tmp_path / "x.bmp", content))
    exact = np.stack([(values >> 11) / 31, (values >> 5 & 63) / 63, (values & 31) / 31], axis=2)
    assert np.abs(image - exact * 255).max() < 1
    runs = b"".join(bytes([WIDTH, y, 0, 0]) for y in range(HEIGHT)) + b"\0\1"
    grey = np.repeat(np.arange(256, dtype=np.uint8), 4).tobytes()
    path = put(tmp_path / "y.bmp", bmp(runs, 8, HEIGHT, palette=grey, compression=1))
    expected = np.repeat(np.arange(HEIGHT)[::-1, None], WIDTH, axis=1)
    np.testing.assert_array_equal(read_image(path)[:, :, 0], expected)
    with pytest.raises(ImageError, match=r"x\.bmp: BMP with 24 bits .* compression 5"):
        read_image(put(tmp_path / "x.bmp", bmp(runs, 24, HEIGHT, compression=5)))


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("bands", [3, 4])
def test_webp(tmp_path: Path, lossless: bool, bands: int) -> None:
    path = tmp_path / "x.webp"
    image = smooth()
    if bands == 4:
        image.putalpha(Image.fromarray(np.full((48, 64), 100, np.uint8)))
    image.save(path, lossless=lossless, quality=95, exact=True)
    difference = np.abs(read_image(path).astype(int) - np.array(smooth()))
    assert difference.max() == 0 if lossless else difference.mean() < 5
    assert read_header(path) == ImageHeader(64, 48, "WebP", bands, 8, 1)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_animations_and_pages_are_refused_from_the_header(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    first = smooth()
    first.save(path, save_all=True, append_images=[ImageOps.invert(first), first.rotate(180)])
    for read in (read_image, read_mask, read_header):
        with pytest.raises(ImageError, match=rf"x\.{suffix}: holds 3 frames or pages"):
            read(path)


def test_a_broken_count_of_frames_makes_a_still_picture(tmp_path: Path) -> None:
    # Pillow warns; every browser shows the still picture.
    samples = random(3, "u1")
    whole = png_of(samples)
    for control in (bytes(8), struct.pack(">II", 1, 0)):
        content = whole[:33] + chunk(b"acTL", control) + whole[33:]
        np.testing.assert_array_equal(read_image(put(tmp_path / "x.png", content)), samples)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = smooth()
    options: dict[str, Any] = {"quality": 100, "lossless": True} if suffix == "webp" else {}
    image.save(tmp_path / f"plain.{suffix}", **options)
    image.save(tmp_path / f"turned.{suffix}", exif=exif, **options)
    plain = Image.fromarray(read_image(tmp_path / f"plain.{suffix}"))
    turns = [
        [],
        [Image.Transpose.FLIP_LEFT_RIGHT],
        [Image.Transpose.ROTATE_180],
        [Image.Transpose.FLIP_TOP_BOTTOM],
        [Image.Transpose.TRANSPOSE],
        [Image.Transpose.ROTATE_270],
        [Image.Transpose.TRANSVERSE],
        [Image.Transpose.ROTATE_90],
    ][orientation - 1]
    for turn in turns:
        plain = plain.transpose(turn)
    np.testing.assert_array_equal(read_image(tmp_path / f"turned.{suffix}"), np.array(plain))
    header = read_header(tmp_path / f"turned.{suffix}")
    assert (header.width, header.height) == plain.size


def test_exif_that_cannot_be_read_is_ignored(tmp_path: Path) -> None:
    image = smooth()
    wrong = [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
    wrong += [b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([9, 0, 0, 0])]
    for suffix, exif in itertools.product(("jpg", "png", "webp"), wrong):
        path = tmp_path / f"x.{suffix}"
        image.save(path, exif=exif)
        assert read_image(path).shape == (48, 64, 3)


def test_a_cameras_jpeg_with_previews_is_one_picture(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    preview = Image.new("RGB", (8, 6))
    smooth().save(path, format="MPO", save_all=True, append_images=[preview])
    smooth().save(tmp_path / "plain.jpg")
    np.testing.assert_array_equal(read_image(path), read_image(tmp_path / "plain.jpg"))
    assert read_header(path) == ImageHeader(64, 48, "JPEG", 3, 8, 1)
    # Pillow warns when the list of previews is broken.
    at = path.read_bytes().index(b"MPF\0") + 8
    content = path.read_bytes()[:at] + b"\xff" * 8 + path.read_bytes()[at + 8 :]
    np.testing.assert_array_equal(
        read_image(put(path, content)), read_image(tmp_path / "plain.jpg")
    )


def test_jpeg_with_more_than_8_bits_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    smooth().save(buffer, format="JPEG")
    content = bytearray(buffer.getvalue())
    content[content.index(b"\xff\xc0") + 4] = 12
    for read in (read_image, read_header):
        with pytest.raises(ImageError, match=r"x\.jpg: JPEG with 12 bits is not supported"):
            read(put(tmp_path / "x.jpg", bytes(content)))
