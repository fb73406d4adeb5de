"""Broken files by the thousand: an image, or an `ImageError` that names the file, and in time.

The search is bounded for everyday runs. To look longer, with other seeds:

    IMAGE_FUZZ_EXAMPLES=100000 pytest tests/test_image_fuzz.py --hypothesis-seed=random
"""

from __future__ import annotations

import io
import os
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mambaadv2.errors import ImageError
from mambaadv2.image import Limits, read_header, read_image, read_mask

EXAMPLES = int(os.environ.get("IMAGE_FUZZ_EXAMPLES", "2500"))
LIMITS = Limits(pixels=300_000, bytes=1_000_000)
# Processor time of this thread, so other load on the machine does not count. The slowest kind is
# run-length BMP, which Pillow decodes in Python.
SECONDS = 3.0

HEIGHT, WIDTH = 18, 23
GENERATOR = np.random.default_rng(3)
COLOURS = GENERATOR.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
WIDE = GENERATOR.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)

EXTREME = [0, 1, 2, 3, 4, 7, 8, 12, 16, 32, 64, 127, 128, 255, 256, 32767, 32768, 65535, 65536]
EXTREME += [2**31 - 1, 2**31, 2**32 - 1]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    # Copies: Pillow leaves one format's settings on an image, where the next stumbles over them.
    more = [each.copy() for each in options.pop("append_images", ())]
    image.copy().save(buffer, format=kind, append_images=more, **options)
    return buffer.getvalue()


def seeds() -> dict[str, bytes]:
    """One small file of every format and of most kinds."""
    rgb, rgba = Image.fromarray(COLOURS[:, :, :3]), Image.fromarray(COLOURS)
    grey = rgb.convert("L")
    palette, bits, wide = rgb.quantize(16), rgb.convert("1"), Image.fromarray(WIDE)
    unit = Image.fromarray((WIDE / 65535).astype(np.float32))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "a camera", 72.0
    more: dict[str, Any] = {"save_all": True, "append_images": [rgb.rotate(180)]}
    files = {
        "png": encoded(rgb, "PNG", exif=exif, dpi=(72, 72)),
        "png rgba": encoded(rgba, "PNG"),
        "png palette": encoded(palette, "PNG", transparency=bytes(range(16)), bits=4),
        "png 1": encoded(bits, "PNG"),
        "png 16": encoded(wide, "PNG"),
        "png animated": encoded(rgb, "PNG", **more),
        "jpeg": encoded(rgb, "JPEG", exif=exif, comment=b"hello", icc_profile=bytes(99)),
        "jpeg progressive": encoded(rgb, "JPEG", progressive=True, restart_marker_blocks=2),
        "jpeg grey": encoded(grey, "JPEG"),
        "jpeg cmyk": encoded(rgb.convert("CMYK"), "JPEG"),
        "jpeg previews": encoded(rgb, "MPO", **more),
        "bmp": encoded(rgb, "BMP"),
        "bmp palette": encoded(palette, "BMP"),
        "bmp rgba": encoded(rgba, "BMP"),
        "bmp runs": run_length(),
        "tiff": encoded(rgb, "TIFF", exif=exif),
        "tiff deflate": encoded(rgba, "TIFF", compression="tiff_adobe_deflate"),
        "tiff lzw": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "tiff jpeg": encoded(rgb.convert("YCbCr"), "TIFF", compression="jpeg"),
        "tiff fax": encoded(bits, "TIFF", compression="group4"),
        "tiff 16": encoded(wide, "TIFF"),
        "tiff 16 big-endian": encoded(Image.frombytes("I;16B", wide.size, WIDE.tobytes()), "TIFF"),
        "tiff float": encoded(unit, "TIFF", compression="packbits"),
        "tiff palette": encoded(palette, "TIFF"),
        "tiff big": encoded(rgb, "TIFF", big_tiff=True),
        "tiff pages": encoded(rgb, "TIFF", **more),
        "webp": encoded(rgb, "WEBP", exif=exif),
        "webp lossless": encoded(rgba, "WEBP", lossless=True, xmp=b"<x/>"),
        "webp animated": encoded(rgb, "WEBP", **more),
    }
    whole = files["png 16"]
    wide_rgb = np.repeat(WIDE[:, :, None], 3, axis=2).astype(">u2").reshape(HEIGHT, -1)
    data = zlib.compress(np.pad(wide_rgb.view(np.uint8), ((0, 0), (1, 0))).tobytes())
    header = whole[16:24] + b"\x10\x02\0\0\0"
    files["png rgb 16"] = b"".join(
        [whole[:8], chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    )
    return files


def run_length() -> bytes:
    runs = b"".join(bytes([WIDTH - 3, y, 0, 3, y, y, y, 0, 0, 0]) for y in range(HEIGHT)) + b"\0\1"
    colours = np.repeat(np.arange(256, dtype=np.uint8), 4).tobytes()
    head = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 8, 1, 0, 0, 0, 0, 0)
    offset = 54 + len(colours)
    return b"BM" + struct.pack("<IHHI", offset + len(runs), 0, 0, offset) + head + colours + runs


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


SEEDS = seeds()


def mend_png(content: bytes) -> bytes:
    """Make the checksums right again, or nothing behind them would ever be reached."""
    parts, position = [content[:8]], 8
    while position + 12 <= len(content):
        length, name = struct.unpack(">I4s", content[position : position + 8])
        if position + 12 + length > len(content):
            break
        parts.append(chunk(name, content[position + 8 : position + 8 + length]))
        position += 12 + length
    return b"".join([*parts, content[position:]])


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A seed after one to five mishaps; mostly near the beginning, where headers are."""
    name = draw(st.sampled_from(sorted(SEEDS)))
    content = bytearray(SEEDS[name])
    for _ in range(draw(st.integers(1, 5))):
        size = len(content)
        if not size:
            break
        near = st.integers(0, size - 1) | st.integers(0, min(size - 1, 120))
        at = draw(near if not name.startswith("tiff") else near | st.integers(0, size - 1))
        length = draw(st.integers(1, 40))
        match draw(st.integers(0, 7)):
            case 0:
                content[at] ^= 1 << draw(st.integers(0, 7))
            case 1:
                content[at] = draw(st.integers(0, 255))
            case 2:
                del content[at:]
            case 3:
                content[at:at] = draw(st.binary(min_size=1, max_size=20))
            case 4:
                content[at:at] = content[at : at + length]
            case 5:
                content[at : at + length] = bytes(len(content[at : at + length]))
            case 6:
                value = draw(st.sampled_from(EXTREME))
                form = draw(st.sampled_from(["<H", ">H", "<I", ">I"]))
                mask = 0xFFFF if form[1] == "H" else 0xFFFFFFFF
                field = struct.pack(form, value & mask)
                content[at : at + len(field)] = field
            case _:
                other = draw(near)
                first, second = sorted((at, other))
                one, two = content[first : first + length], content[second : second + length]
                content[second : second + length] = one
                content[first : first + length] = two
    whole = bytes(content)
    return mend_png(whole) if name.startswith("png") and draw(st.booleans()) else whole


@st.composite
def with_broken_exif(draw: st.DrawFn) -> bytes:
    """A whole picture whose EXIF is a broken TIFF, or no TIFF at all."""
    exif = draw(st.binary(max_size=60) | broken().map(lambda content: content[:2000]))
    exif = draw(st.sampled_from([b"", b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0", b"MM\0*"])) + exif
    match draw(st.integers(0, 2)):
        case 0:
            whole = SEEDS["jpeg grey"]
            return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + whole[2:]
        case 1:
            whole = SEEDS["png rgba"]
            return whole[:33] + chunk(b"eXIf", exif) + whole[33:]
        case _:
            whole = encoded(Image.fromarray(COLOURS), "WEBP")
            body = whole[12:] + b"EXIF" + struct.pack("<I", len(exif)) + exif
            body += bytes(len(exif) % 2)
            return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def check(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    results: dict[Callable[..., Any], Any] = {}
    for read in (read_header, read_image, read_mask):
        before = time.thread_time()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                results[read] = read(path, limits=LIMITS)
            except ImageError as error:
                text = str(error)
                assert text.startswith(f"{path}: ")
                assert text.isprintable()
        assert not warned, [str(each.message) for each in warned]
        assert time.thread_time() - before < SECONDS
    image, mask = results.get(read_image), results.get(read_mask)
    if image is not None:
        assert image.dtype == np.uint8
        header = results[read_header]
        assert image.shape == (header.height, header.width, 3)
        assert 0 < header.height * header.width <= LIMITS.pixels
    if mask is not None:
        header = results[read_header]
        assert mask.dtype == np.bool_
        assert mask.shape == (header.height, header.width)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "x"


bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="IMAGE_FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.slow
@bounded
@given(broken())
def test_broken_files_give_an_image_or_an_image_error(place: Path, content: bytes) -> None:
    check(place, content)


@pytest.mark.slow
@settings(bounded, max_examples=EXAMPLES // 5)
@given(with_broken_exif())
def test_broken_exif_makes_no_difference(place: Path, content: bytes) -> None:
    check(place, content)
    if len(content) < 65_000:
        assert read_image(place, limits=LIMITS).size == HEIGHT * WIDTH * 3


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_the_seeds_are_whole(place: Path, name: str) -> None:
    check(place, SEEDS[name])
    if "animated" in name or "pages" in name:
        with pytest.raises(ImageError, match="holds 2 frames"):
            read_header(place)
    else:
        read_image(place)


@settings(bounded, max_examples=EXAMPLES // 5)
@given(st.binary(max_size=300), st.sampled_from(sorted(SEEDS)))
def test_a_signature_and_noise(place: Path, noise: bytes, name: str) -> None:
    check(place, SEEDS[name][:12] + noise)
