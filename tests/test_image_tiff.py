"""TIFF in all its arrangements: read as the docstring of `read_image` says, or refused by name."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mambaadv2.errors import ImageError
from mambaadv2.image import ImageHeader, read_header, read_image, read_mask

RNG = np.random.default_rng(1)
HEIGHT, WIDTH = 21, 35
SHORT, LONG = 3, 4


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


def forge(
    blocks: Sequence[bytes],
    tags: dict[int, int | Sequence[int]],
    *,
    order: str = "<",
    big: bool = False,
    tiled: bool = False,
) -> bytes:
    """A TIFF or BigTIFF of these strips or tiles; `tags` as short or long numbers."""
    word, inline, head = ("Q", 8, 16) if big else ("I", 4, 8)
    content = b""
    offsets = []
    for block in blocks:
        offsets.append(head + len(content))
        content += block + bytes(len(block) % 2)
    counts = [len(block) for block in blocks]
    everything = tags | ({324: offsets, 325: counts} if tiled else {273: offsets, 279: counts})
    table, values, start = b"", b"", head + len(content)
    behind = start + (8 if big else 2) + len(everything) * (4 + 2 * inline) + inline
    for tag, value in sorted(everything.items()):
        numbers = [value] if isinstance(value, int) else list(value)
        long = max(numbers) > 65535 or tag in (273, 279, 324, 325)
        data = struct.pack(f"{order}{len(numbers)}{'I' if long else 'H'}", *numbers)
        table += struct.pack(order + "HH" + word, tag, LONG if long else SHORT, len(numbers))
        if len(data) <= inline:
            table += data.ljust(inline, b"\0")
        else:
            table += struct.pack(order + word, behind + len(values))
            values += data + bytes(len(data) % 2)
    mark = b"II" if order == "<" else b"MM"
    fixed = (
        struct.pack(order + "HHHQ", 43, 8, 0, start)
        if big
        else struct.pack(order + "HI", 42, start)
    )
    count = struct.pack(order + ("Q" if big else "H"), len(everything))
    return mark + fixed + content + count + table + bytes(inline) + values


def tiff(
    samples: NDArray[Any],
    *,
    order: str = "<",
    big: bool = False,
    planar: bool = False,
    tile: int = 0,
    rows: int = HEIGHT,
    deflate: bool = False,
    **more: int | Sequence[int],
) -> bytes:
    """A TIFF of (H, W, C) samples; `more` is t followed by a tag's number: t262=0."""
    height, width, bands = samples.shape
    swapped = samples.astype(order + samples.dtype.str[1:])
    planes = [swapped[:, :, [band]] for band in range(bands)] if planar else [swapped]
    blocks = []
    for plane in planes:
        if tile:
            padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
            for y, x in itertools.product(range(0, height, tile), range(0, width, tile)):
                blocks.append(padded[y : y + tile, x : x + tile].tobytes())
        else:
            blocks += [plane[y : y + rows].tobytes() for y in range(0, height, rows)]
    if deflate:
        blocks = [zlib.compress(block) for block in blocks]
    tags: dict[int, int | Sequence[int]] = {
        256: width,
        257: height,
        258: [samples.dtype.itemsize * 8] * bands,
        259: 8 if deflate else 1,
        262: 2 if bands >= 3 else 1,
        277: bands,
        284: 2 if planar else 1,
        339: [{"u": 1, "i": 2, "f": 3}[samples.dtype.kind]] * bands,
        **({322: tile, 323: tile} if tile else {278: rows}),
        **({338: 2} if bands in (2, 4) else {}),
    }
    tags |= {int(name[1:]): value for name, value in more.items()}
    return forge(blocks, tags, order=order, big=big, tiled=bool(tile))


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def smooth() -> Image.Image:
    """A picture that survives lossy compression."""
    y, x = np.mgrid[0:48, 0:64]
    return Image.fromarray(np.stack([x * 3, y * 4, 255 - x - y], axis=2).astype(np.uint8))


@pytest.mark.parametrize("bands", [1, 3, 4], ids=["grey", "rgb", "rgba"])
@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("deflate", [False, True], ids=["raw", "deflate"])
def test_tiff_in_every_arrangement(tmp_path: Path, bands: int, kind: str, deflate: bool) -> None:
    samples = random(bands, kind)
    marks = np.where(RNG.random(samples.shape) < 0.5, 0, samples > 250).astype(kind)
    for order, big, planar, place in itertools.product(
        "<>", (False, True), (False, True), ({"tile": 16}, {"rows": 21}, {"rows": 4})
    ):
        how = {"order": order, "big": big, "planar": planar and bands > 1, "deflate": deflate}
        path = put(tmp_path / "x.tif", tiff(samples, **how, **place))  # type: ignore[arg-type]
        np.testing.assert_array_equal(read_image(path), shown(samples), err_msg=f"{how} {place}")
        assert read_header(path) == ImageHeader(
            WIDTH, HEIGHT, "TIFF", bands, 8 * samples.dtype.itemsize, 1
        )
        path = put(path, tiff(marks, **how, **place))  # type: ignore[arg-type]
        expected = marks[:, :, : 3 if bands > 2 else 1].any(axis=2)
        np.testing.assert_array_equal(read_mask(path), expected, err_msg=f"{how} {place}")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True], ids=["raw", "deflate"])
@pytest.mark.parametrize("tile", [0, 16])
def test_tiff_numbers(tmp_path: Path, order: str, deflate: bool, tile: int) -> None:
    path = tmp_path / "x.tif"
    how: dict[str, Any] = {"order": order, "deflate": deflate, "tile": tile}
    unit = random(1, "f4")
    np.testing.assert_array_equal(read_image(put(path, tiff(unit, **how))), shown(unit))
    np.testing.assert_array_equal(read_image(put(path, tiff(unit, t262=0, **how))), shown(1 - unit))
    np.testing.assert_array_equal(read_mask(path), (1 - unit)[:, :, 0] > 0)
    counts = random(1, "u2")
    for kind in ("i4", "u4"):
        np.testing.assert_array_equal(
            read_image(put(path, tiff(counts.astype(kind), **how))), shown(counts)
        )
    signed = (counts // 2).astype("i2")
    np.testing.assert_array_equal(read_image(put(path, tiff(signed, **how))), shown(counts // 2))
    for wrong in (-signed - 1, counts.astype("i4") + 65536, counts.astype("u4") + 2**31):
        with pytest.raises(ImageError, match=r"x\.tif: integer pixels must lie in \[0, 65535\]"):
            read_image(put(path, tiff(wrong, **how)))
    for outside in (-0.01, 1.01, np.nan, np.inf, -np.inf):
        unit[3, 4] = outside
        put(path, tiff(unit, **how))
        with pytest.raises(ImageError, match=r"x\.tif: float pixels must lie in \[0, 1\]"):
            read_image(path)
        if outside != 1.01:
            with pytest.raises(ImageError, match=r"x\.tif: a float mask must hold finite"):
                read_mask(path)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True], ids=["raw", "deflate"])
def test_white_is_zero(tmp_path: Path, order: str, deflate: bool) -> None:
    path = tmp_path / "x.tif"
    for kind in ("u1", "u2"):
        samples = random(1, kind)
        content = tiff(samples, order=order, deflate=deflate, t262=0)
        np.testing.assert_array_equal(read_image(put(path, content)), shown(~samples))
        np.testing.assert_array_equal(read_mask(path), ~samples[:, :, 0] > 0)
    bits = RNG.random((HEIGHT, WIDTH)) < 0.5
    packed = np.packbits(bits, axis=1)[:, :, None]
    for photometric in (0, 1):
        # A row of 35 pixels is 5 bytes.
        content = tiff(packed, order=order, deflate=deflate, t256=WIDTH, t258=1, t262=photometric)
        np.testing.assert_array_equal(read_mask(put(path, content)), bits == photometric)


@pytest.mark.parametrize("bits", [2, 4, 12])
def test_tiff_of_odd_depth(tmp_path: Path, bits: int) -> None:
    values = RNG.integers(0, 2**bits, (HEIGHT, 24), dtype=np.uint16)
    values[0, :2] = 0, 2**bits - 1
    every = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(HEIGHT, 24, 2), axis=2)
    packed = np.packbits(every[:, :, 16 - bits :].reshape(HEIGHT, -1), axis=1)[:, :, None]
    path = put(tmp_path / "x.tif", tiff(packed, t256=24, t258=bits))
    image = read_image(path)
    np.testing.assert_array_equal(image[:, :, 0], np.rint(values / (2**bits - 1) * 255))
    assert read_header(path).bits == bits
    inverted = read_image(put(path, tiff(packed, t256=24, t258=bits, t262=0)))
    np.testing.assert_array_equal(inverted, 255 - image)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff(random(1, "i1")), "signed 8-bit grey"),
        (tiff(random(1, "f8")), "float 64-bit grey"),
        (tiff(random(1, "f2")), "float 16-bit grey"),
        (tiff(random(3, "f4")), "float 32-bit RGB"),
        (tiff(random(3, "u4")), "unsigned 32-bit RGB"),
        (tiff(random(1, "i4"), t262=0), "signed 32-bit white-is-zero grey"),
        (tiff(random(3, "u1"), t258=[8, 8, 16]), "unsigned 8/16-bit RGB"),
        (tiff(random(3, "u1"), t262=8), "CIE Lab"),
        (tiff(random(1, "u1"), t262=4), "a transparency mask"),
        (tiff(random(1, "u2"), t262=32803), "pixels of kind 32803"),
        (tiff(random(3, "u1"), t262=6), "YCbCr in planes, or subsampled without compression"),
        (tiff(random(3, "u1"), t259=6), "JPEG compression of the old style"),
        (tiff(random(4, "u1"), t262=5, t332=2), "inks other than CMYK"),
        (tiff(random(4, "u2"), t262=5, planar=True), "separate planes"),
        (tiff(random(4, "u1"), t338=1, planar=True), "separate planes"),
        (tiff(random(9, "u1")), "8-bit RGB with 9 samples"),
        (tiff(random(2, "u2")), "16-bit grey with 2 samples"),
        (tiff(random(3, "u1"), t262=1), "8-bit grey with 3 samples"),
        (tiff(random(1, "u1"), t262=2), "8-bit RGB with 1 samples"),
        (tiff(random(1, "u1"), order=">", t258=12), "12-bit grey, most significant byte first"),
        (tiff(random(1, "u1"), t277=0), "8-bit grey with 0 samples"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tiff_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = put(tmp_path / "x.tif", content)
    for read in (read_image, read_mask, read_header):
        with pytest.raises(ImageError, match=r"x\.tif: TIFF with .* is not supported") as caught:
            read(path)
        assert message in str(caught.value)


@pytest.mark.parametrize("extra", [{}, {"t338": [0, 2, 0]}, {"t338": [2, 2, 2]}, {"t338": 0}])
def test_samples_beside_the_colours_are_dropped(tmp_path: Path, extra: dict[str, Any]) -> None:
    path = tmp_path / "x.tif"
    for kind, bands, planar in itertools.product(("u1", "u2"), (2, 4, 5, 6), (False, True)):
        if kind == "u2" and bands != 4 and not planar:
            continue
        samples = random(bands, kind)
        put(path, tiff(samples, planar=planar, **extra))
        np.testing.assert_array_equal(read_image(path), shown(samples))


def test_colours_multiplied_with_alpha_are_divided_again(tmp_path: Path) -> None:
    colours = RNG.integers(0, 128, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    samples = np.pad(colours, ((0, 0), (0, 0), (0, 1)), constant_values=128)
    path = tmp_path / "x.tif"
    image = read_image(put(path, tiff(samples, t338=1)))
    np.testing.assert_allclose(image, colours * (255 / 128), atol=1)
    np.testing.assert_array_equal(
        read_image(put(path, tiff(samples.astype("u2") * 257, t338=1))), image
    )
    grey = np.ascontiguousarray(samples[:, :, 2:])
    image = read_image(put(path, tiff(grey, t338=1)))
    np.testing.assert_allclose(image[:, :, 0], grey[:, :, 0] * (255 / 128), atol=1)


@pytest.mark.parametrize("mode", ["P", "PA"])
def test_tiff_palette(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(random(3, "u1")).quantize(16).convert(mode)
    image.save(tmp_path / "x.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif"), np.array(image.convert("RGB")))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "I;16B", "RGB", "RGBA", "CMYK"])
def test_tiff_as_pillow_writes_it(tmp_path: Path, compression: str, mode: str) -> None:
    path = tmp_path / "x.tif"
    if mode.startswith("I;16"):
        samples = random(1, "u2")
        image = Image.fromarray(samples[:, :, 0])
        image = Image.frombytes(
            mode, image.size, samples.astype(">u2" if mode == "I;16B" else "<u2")
        )
        expected = shown(samples)
    else:
        image = Image.fromarray(random(3, "u1")).convert("CMYK" if mode == "CMYK" else "RGB")
        image = image.convert(mode)
        expected = np.array(image.convert("RGB"))
    image.save(path, compression=compression)
    np.testing.assert_array_equal(read_image(path), expected)


@pytest.mark.parametrize("compression", ["raw", "jpeg"])
@pytest.mark.parametrize("mode", ["YCbCr", "RGB", "L"])
def test_tiff_with_jpeg_or_ycbcr_inside(tmp_path: Path, compression: str, mode: str) -> None:
    path = tmp_path / "x.tif"
    smooth().convert(mode).save(path, compression=compression, quality=95)
    expected = np.array((smooth().convert("L") if mode == "L" else smooth()).convert("RGB"))
    assert np.abs(read_image(path).astype(int) - expected).mean() < 4


def cmyk(samples: NDArray[Any], order: str) -> bytes:
    height, width, _ = samples.shape
    block = samples.astype(order + samples.dtype.str[1:]).tobytes()
    bits = [samples.dtype.itemsize * 8] * 4
    tags: dict[int, int | Sequence[int]] = {256: width, 257: height, 258: bits, 262: 5, 277: 4}
    return forge([block], tags | {278: height}, order=order)


def test_of_16_bit_cmyk_the_high_byte_counts_and_no_mask(tmp_path: Path) -> None:
    eight = random(4, "u1")
    for order in "<>":
        path = put(tmp_path / "8.tif", cmyk(eight, order))
        twin = put(tmp_path / "16.tif", cmyk(eight.astype("u2") * 257, order))
        np.testing.assert_array_equal(read_image(twin), read_image(path))
        with pytest.raises(ImageError, match=r"16\.tif: 16-bit TIFF of this kind is no mask"):
            read_mask(twin)


@pytest.mark.parametrize("bands", [1, 3, 4], ids=["grey", "rgb", "rgba"])
def test_twins_of_8_and_16_bits_are_equal(tmp_path: Path, bands: int) -> None:
    eight = random(bands, "u1")
    one, twin = tmp_path / "8.tif", tmp_path / "16.tif"
    for order, planar in itertools.product("<>", (False, True) if bands > 1 else (False,)):
        put(one, tiff(eight, order=order, planar=planar))
        put(twin, tiff(eight.astype("u2") * 257, order=order, planar=planar, deflate=True))
        image = read_image(one)
        np.testing.assert_array_equal(image, shown(eight))
        np.testing.assert_array_equal(read_image(twin), image)
        np.testing.assert_array_equal(read_mask(twin), read_mask(one))


def test_strips_that_are_not_all_there(tmp_path: Path) -> None:
    # A decoder would leave their rows black.
    samples = random(3, "u1")
    path = tmp_path / "x.tif"
    more: dict[str, Any] = {"t257": HEIGHT + 9, "t256": WIDTH + 9, "t277": 4, "t278": 1}
    for tag, number in more.items():
        with pytest.raises(ImageError, match=r"x\.tif: the file is truncated or damaged: .*strips"):
            read_image(put(path, tiff(samples, rows=7, **{tag: number})))


def test_a_directory_that_runs_in_a_ring_is_one_page(tmp_path: Path) -> None:
    samples = random(1, "u1")
    content = bytearray(tiff(samples))
    (start,) = struct.unpack_from("<I", content, 4)
    struct.pack_into("<I", content, start + 2 + 12 * content[start], start)
    np.testing.assert_array_equal(
        read_image(put(tmp_path / "x.tif", bytes(content))), shown(samples)
    )
