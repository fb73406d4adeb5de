"""Real files in, arrays out: every kind of pixel, every kind of broken file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from mambaadv2.errors import ImageError
from mambaadv2.image import (
    Limits,
    colour_map,
    outline,
    overlay,
    png_bytes,
    read_image,
    read_mask,
    resize_image,
    resize_map,
    write_png,
)

RNG = np.random.default_rng(0)
RGB8 = RNG.integers(0, 256, (13, 17, 3), dtype=np.uint8)
GREY8 = RNG.integers(0, 256, (13, 17), dtype=np.uint8)


def png16(samples: NDArray[np.uint16], *, interlaced: bool = False) -> bytes:
    """A 16-bit PNG: grey (H, W), grey + alpha, RGB or RGBA (H, W, C). Pillow writes only grey."""
    height, width = samples.shape[:2]
    bands = 1 if samples.ndim == 2 else samples.shape[2]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[bands]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, interlaced)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(
    samples: NDArray[np.generic],
    order: Literal["<", ">"] = "<",
    photometric: int | None = None,
    *,
    deflate: bool = False,
) -> bytes:
    """A one-strip TIFF of grey or RGB(A) samples, any depth and byte order."""
    height, width = samples.shape[:2]
    bands = 1 if samples.ndim == 2 else samples.shape[2]
    bits = samples.dtype.itemsize * 8
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if deflate else data
    data += bytes(len(data) % 2)
    bits_offset = 8 + len(data)
    sample_format = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    kind = photometric if photometric is not None else (1 if bands == 1 else 2)
    short, long = 3, 4
    tags = [
        (256, long, 1, width),
        (257, long, 1, height),
        (258, short, bands, bits if bands == 1 else bits_offset),
        (259, short, 1, 8 if deflate else 1),
        (262, short, 1, kind),
        (273, long, 1, 8),
        (277, short, 1, bands),
        (278, long, 1, height),
        (279, long, 1, len(data)),
        (339, short, 1, sample_format),
    ]
    directory = struct.pack(order + "H", len(tags))
    for tag, field, count, value in tags:
        inline = field == short and count == 1
        packed = struct.pack(
            order + ("HH" if inline else "I"), *([value, 0] if inline else [value])
        )
        directory += struct.pack(order + "HHI", tag, field, count) + packed
    bits_list = struct.pack(order + "H" * bands, *[bits] * bands)
    head = (b"II" if order == "<" else b"MM") + struct.pack(
        order + "HI", 42, bits_offset + len(bits_list)
    )
    return head + data + bits_list + directory + struct.pack(order + "I", 0)


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def wide(bands: int | None) -> NDArray[np.uint16]:
    shape = (13, 17) if bands is None else (13, 17, bands)
    samples = RNG.integers(0, 65536, shape).astype(np.uint16)
    # Around every rounding border of x / 257.
    samples.flat[:9] = [0, 128, 129, 385, 386, 65406, 65407, 65534, 65535]
    return samples


def rounded(samples: NDArray[np.uint16]) -> NDArray[np.uint8]:
    eight = np.rint(samples / 257).astype(np.uint8)
    return np.repeat(eight[:, :, None], 3, axis=2) if eight.ndim == 2 else eight[:, :, :3]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_lossless_8_bit_comes_back_exactly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(RGB8).save(path, lossless=True)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, RGB8)


def test_content_counts_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(GREY8).save(path, format="PNG")
    np.testing.assert_array_equal(read_image(str(path)), np.repeat(GREY8[:, :, None], 3, axis=2))


@pytest.mark.parametrize("bands", [None, 3, 4], ids=["grey", "rgb", "rgba"])
@pytest.mark.parametrize("kind", ["png", "tiff <", "tiff >", "tiff deflate <", "tiff deflate >"])
def test_16_bits_are_divided_by_257_and_rounded(
    tmp_path: Path, kind: str, bands: int | None
) -> None:
    samples = wide(bands)
    content = (
        png16(samples)
        if kind == "png"
        else tiff(samples, "<" if kind.endswith("<") else ">", deflate="deflate" in kind)
    )
    np.testing.assert_array_equal(read_image(put(tmp_path / "x", content)), rounded(samples))


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(GREY8 % 4).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 200, 210, 220])
    image.save(tmp_path / "x.png", transparency=bytes([0, 128, 255, 255]))
    table = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [200, 210, 220]], np.uint8)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), table[GREY8 % 4])


def test_alpha_is_dropped(tmp_path: Path) -> None:
    alpha = np.full((13, 17, 1), 7, np.uint8)
    Image.fromarray(np.concatenate([RGB8, alpha], axis=2)).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), RGB8)
    bands = [Image.fromarray(GREY8), Image.fromarray(alpha[:, :, 0])]
    Image.merge("LA", bands).save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "la.png")[:, :, 1], GREY8)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_is_converted(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path)
    image = read_image(path)
    assert image.shape == (16, 16, 3)
    np.testing.assert_allclose(image.mean(axis=(0, 1)), [255, 0, 0], atol=3)


def test_one_bit(tmp_path: Path) -> None:
    Image.fromarray(GREY8 > 99).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png")[:, :, 0], (GREY8 > 99) * 255)
    np.testing.assert_array_equal(read_mask(tmp_path / "x.png"), GREY8 > 99)


def test_mask_keeps_the_faintest_value(tmp_path: Path) -> None:
    expected = np.zeros((13, 17), bool)
    expected[3:6, 4:9] = True
    Image.fromarray(expected.astype(np.uint8)).save(tmp_path / "8.png")
    put(tmp_path / "16.png", png16(expected.astype(np.uint16)))
    colour = np.zeros((13, 17, 3), np.uint16)
    colour[:, :, 2] = expected
    put(tmp_path / "rgb16.png", png16(colour))
    opaque = np.zeros((13, 17, 4), np.uint8)
    opaque[:, :, 3] = 255
    opaque[:, :, 0] = expected
    Image.fromarray(opaque).save(tmp_path / "rgba.png")
    for name in ("8.png", "16.png", "rgb16.png", "rgba.png"):
        mask = read_mask(tmp_path / name)
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, expected, err_msg=name)


def jpeg(tmp_path: Path) -> bytes:
    Image.fromarray(np.kron(RGB8, np.ones((8, 8, 1), np.uint8))).save(tmp_path / "whole.jpg")
    return (tmp_path / "whole.jpg").read_bytes()


def test_broken_files_are_named(tmp_path: Path) -> None:
    whole_jpeg, whole_png = jpeg(tmp_path), png_bytes(RGB8)
    cases = {
        "missing.png": None,
        "empty.png": b"",
        "text.png": b"this is a list of things to do\n" * 9,
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "cut.png": whole_png[: len(whole_png) // 2],
        "cut.jpg": whole_jpeg[: len(whole_jpeg) // 2],
        "head.png": whole_png[:20],
        "cut.tif": tiff(wide(3))[:200],
        "checksum.png": whole_png.replace(b"IHDR", b"IHDr"),
        "cut16.png": png16(wide(3))[:-40],
    }
    for name, content in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        for read in (read_image, read_mask):
            with pytest.raises(ImageError) as caught:
                read(path)
            assert str(caught.value).startswith(str(path))


def test_the_pixel_limit_is_checked_before_decoding(tmp_path: Path) -> None:
    whole = png_bytes(np.zeros((30, 40, 3), np.uint8))
    # Broken pixels: decoding would fail, so the error must come from the check.
    path = put(tmp_path / "x.png", whole[:45] + bytes(4) + whole[49:])
    with pytest.raises(ImageError, match=r"x\.png: .*checksum"):
        read_image(path)
    with pytest.raises(ImageError, match=r"x\.png: 40 x 30 pixels exceed the limit of 1,199"):
        read_image(path, limits=Limits(pixels=1199))
    assert read_image(put(path, whole), limits=Limits(pixels=1200)).shape == (30, 40, 3)


def test_resize_image() -> None:
    assert resize_image(RGB8, (13, 17)) is RGB8
    assert resize_image(RGB8, (5, 9)).shape == (5, 9, 3)
    # Antialiased: stripes of one pixel shrink to their mean, not to one of the two colours.
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    np.testing.assert_allclose(resize_image(stripes, (16, 16))[:, 1:-1], 128, atol=1)
    with pytest.raises(ValueError, match="uint8"):
        resize_image(RGB8.astype(np.float32), (5, 9))


def bilinear(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float64]:
    """Enlarging, slowly: half-integer centres, edges repeated."""
    result = values.astype(np.float64)
    for axis, count in enumerate(size):
        have = result.shape[axis]
        at = np.clip((np.arange(count) + 0.5) * have / count - 0.5, 0, have - 1)
        left = np.floor(at).astype(int)
        right = np.minimum(left + 1, have - 1)
        part = (at - left).reshape((-1, 1) if axis == 0 else (1, -1))
        result = result.take(left, axis) * (1 - part) + result.take(right, axis) * part
    return result


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 8), st.integers(1, 8)),
        elements=st.floats(-100, 100, width=32),
    ),
    st.tuples(st.integers(8, 30), st.integers(8, 30)),
)
def test_resize_map_is_bilinear(values: NDArray[np.float32], size: tuple[int, int]) -> None:
    resized = resize_map(values, size)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, bilinear(values, size), atol=1e-3)


def test_colour_map_lightness_rises_and_clips() -> None:
    values = np.linspace(-1, 3, 801)[None]
    colours = colour_map(values, 0, 2)
    lightness = colours @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(lightness[0]) >= 0).all()
    np.testing.assert_array_equal(colours[0, 0], [0, 0, 4])
    np.testing.assert_array_equal(colours[0, -1], [252, 255, 164])
    np.testing.assert_array_equal(colours[:, :201], np.broadcast_to(colours[0, 0], (1, 201, 3)))


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([[np.nan]], 0, 1),
        ([[np.inf]], 0, 1),
        ([[0.0]], 1, 1),
        ([[0.0]], 2, 1),
        ([[0.0]], 0, np.nan),
        ([0.0], 0, 1),
    ],
)
def test_colour_map_refuses_nonsense(values: list[object], low: float, high: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        colour_map(np.array(values, np.float64), low, high)


def test_overlay_leaves_a_good_image_alone() -> None:
    values = np.zeros(RGB8.shape[:2], np.float32)
    np.testing.assert_array_equal(overlay(RGB8, values, 0, 1), RGB8)
    np.testing.assert_array_equal(overlay(RGB8, values + 9, 0, 1, opacity=0), RGB8)
    before = RGB8.copy()
    hot = overlay(RGB8, values + 9, 0, 1)
    np.testing.assert_array_equal(RGB8, before)
    np.testing.assert_allclose(hot, (RGB8 + np.array([252.0, 255, 164])) / 2, atol=1)
    solid = overlay(RGB8, values + 9, 0, 1, opacity=1)
    np.testing.assert_array_equal(solid, np.broadcast_to([252, 255, 164], RGB8.shape))
    with pytest.raises(ValueError, match="as the image"):
        overlay(RGB8, values[1:], 0, 1)


def test_outline_follows_the_edge() -> None:
    image = np.full((20, 30, 3), 9, np.uint8)
    mask = np.zeros((20, 30), bool)
    np.testing.assert_array_equal(outline(image, mask), image)
    mask[5:12, 0:10] = True
    drawn = outline(image, mask, colour=(1, 2, 3)) != image
    changed = drawn.any(axis=2)
    assert changed[5, 5]
    assert changed[4, 5]
    assert changed[8, 0]
    assert not changed[8, 5]
    assert not changed[3, 5]
    assert image.min() == 9
    with pytest.raises(ValueError, match="bool"):
        outline(image, mask[1:])


def test_png_round_trip(tmp_path: Path) -> None:
    for pixels in (RGB8, GREY8):
        write_png(tmp_path / "x.png", pixels)
        again = read_image(tmp_path / "x.png")
        assert (again == (pixels if pixels.ndim == 3 else pixels[:, :, None])).all()
        np.testing.assert_array_equal(again, read_image(put(tmp_path / "y.png", png_bytes(pixels))))
    with pytest.raises(ValueError, match="uint8"):
        png_bytes(RGB8[:, :, :2])
