"""What cannot be read is named, and nothing but `ImageError` leaves the door."""

from __future__ import annotations

import io
import os
import socket
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from mambaadv2.errors import ConfigError, ImageError
from mambaadv2.image import Limits, png_bytes, read_header, read_image, read_mask

READERS: tuple[Callable[..., object], ...] = (read_image, read_mask, read_header)
PICTURE = np.random.default_rng(2).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def encoded(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, format=kind, **options)
    return buffer.getvalue()


# Pixels come first or last, compressed or not: where a cut falls differs.
FILES = {
    "png": encoded("PNG"),
    "jpg": encoded("JPEG", quality=95),
    "progressive.jpg": encoded("JPEG", quality=95, progressive=True),
    "bmp": encoded("BMP"),
    "raw.tif": encoded("TIFF"),
    "lzw.tif": encoded("TIFF", compression="tiff_lzw"),
    "lossless.webp": encoded("WEBP", lossless=True),
    "lossy.webp": encoded("WEBP"),
}


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def message(read: Callable[..., object], path: Path, **options: Any) -> str:
    """What a refusal says; it must begin with the name and be one line for people."""
    with pytest.raises(ImageError) as caught:
        read(path, **options)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.isprintable()
    return text


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_files_cut_short(
    tmp_path: Path, name: str, lenient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some programs tell Pillow to fill in what is missing; a score must not come of that.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    whole = FILES[name]
    path = put(tmp_path / name, whole)
    read_image(path)
    size = len(whole)
    for length in (1, 3, 7, 11, 17, 25, 40, size // 4, size // 2, size - size // 8, size - 2):
        put(path, whole[:length])
        for read in (read_image, read_mask):
            assert "expected a PNG" in (text := message(read, path)) or "truncated" in text
    # Copied by a system that died: the size is right, the end is zeros. Nothing in WebP and among
    # uncompressed pixels would show it.
    if name in ("png", "jpg", "progressive.jpg", "lzw.tif"):
        put(path, whole[: size // 2] + bytes(size - size // 2))
        message(read_image, path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "found an empty file"),
        (b"\0", "found a file that begins with"),
        (b"a list of things to do\n" * 9, "begins with b'a list of th'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "begins with b'%!PS"),
        (b"GIF89a\x01\0\x01\0\0\0\0;", "begins with b'GIF89a"),
        (b"RIFF\x04\0\0\0WAVE", "begins with b'RIFF"),
        (b"\x89PNG\r\n\x1a\n", "truncated or damaged"),
        (b"\xff\xd8\xff\xd9", "truncated or damaged"),
        (b"BM", "truncated or damaged"),
        (b"II*\0\x08\0\0\0\0\0", "truncated or damaged: a directory of 0 tags"),
        (b"RIFF\x04\0\0\0WEBP", "it holds no pixels"),
    ],
)
def test_what_is_no_image(tmp_path: Path, content: bytes, expected: str) -> None:
    path = put(tmp_path / "x.png", content)
    assert expected in message(read_image, path)
    assert len({message(read, path) for read in READERS}) == 1


def test_a_damaged_byte_in_a_png_is_found(tmp_path: Path) -> None:
    # Flat rows are stored, not compressed: a decoder has nothing to stumble over.
    whole = bytearray(encoded("PNG", compress_level=0))
    whole[len(whole) // 2] ^= 1
    assert "checksum" in message(read_image, put(tmp_path / "x.png", bytes(whole)))
    whole = bytearray(FILES["png"])
    whole[20] ^= 1
    assert "header chunk" in message(read_header, put(tmp_path / "x.png", bytes(whole)))


def test_pixels_broken_by_a_marker_in_a_jpeg(tmp_path: Path) -> None:
    whole = bytearray(FILES["jpg"])
    start = whole.index(b"\xff\xda")
    whole[start + 200 : start + 202] = b"\xff\xd8"
    assert "pixels are broken" in message(read_image, put(tmp_path / "x.jpg", bytes(whole)))


def test_places_that_hold_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    put(tmp_path / "file.png", FILES["png"])
    cases = {
        "pipe.png": "found a pipe, socket or device",
        "folder.png": "found a folder",
        "loop.png": "cannot be opened or read (Too many levels of symbolic links)",
        "gone.png": "no such image file",
        "missing.png": "no such image file",
        "file.png/x.png": "cannot be opened or read (Not a directory)",
        "n" * 300 + ".png": "cannot be opened or read (File name too long)",
    }
    for name, expected in cases.items():
        for read in READERS:
            assert expected in message(read, tmp_path / name)
    for read in READERS:
        assert "device" in message(read, Path("/dev/zero"))
    with socket.socket(socket.AF_UNIX) as server:
        # A socket's path may be short only.
        here = Path.cwd()
        os.chdir(tmp_path)
        try:
            server.bind("s.png")
        finally:
            os.chdir(here)
        assert "found a pipe, socket or device" in message(read_image, tmp_path / "s.png")


def test_a_file_without_the_right_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "x.png", FILES["png"])
    path.chmod(0)
    if os.access(path, os.R_OK):
        # Root may read everything.
        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "open", refuse)
    for read in READERS:
        assert "cannot be opened or read (Permission denied)" in message(read, path)


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "x.png", FILES["png"])

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "open", fail)
    assert "cannot be opened or read (Input/output error)" in message(read_image, path)


def test_a_file_that_shrinks_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "x.png", FILES["png"])
    fstat = os.fstat

    def then_cut(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        os.truncate(path, 4000)
        return status

    monkeypatch.setattr(os, "fstat", then_cut)
    assert "truncated or damaged" in message(read_image, path)


@pytest.mark.parametrize("name", ["two\nlines.png", "bell\a.png", "caf\udce9.png", "\udfff.png"])
def test_odd_names_are_shown_on_one_line(tmp_path: Path, name: str) -> None:
    for content in (None, b"", FILES["png"][:99]):
        path = tmp_path / name
        try:
            if content is not None:
                path.write_bytes(content)
        except UnicodeEncodeError:
            pass
        for read in READERS:
            with pytest.raises(ImageError) as caught:
                read(path)
            assert str(caught.value).isprintable()
            assert str(caught.value).startswith(f"{tmp_path}/{repr(name)[1:-1]}: ")


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(ImageError, match="no file can have this name"):
        read_image("a\0b.png")


def png_that_claims(width: int, height: int, pixels: bytes = b"") -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(pixels, 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def test_huge_headers_are_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    pages = bytearray(FILES["raw.tif"])
    with Image.open(io.BytesIO(pages)) as image:
        directory = image.tag_v2._offset  # type: ignore[attr-defined]
    for entry in (directory + 2, directory + 14):
        struct.pack_into("<HHII", pages, entry, 256 + (entry > directory + 2), 4, 1, 100_000)
    bitmap = bytearray(FILES["bmp"])
    struct.pack_into("<ii", bitmap, 18, 100_000, 100_000)
    canvas = b"VP8X\x0a\0\0\0" + bytes(4) + b"\xff\xff\xff" * 2
    jpeg = bytearray(FILES["jpg"])
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = b"\xff\xff\xff\xff"
    cases = {
        "png": png_that_claims(100_000, 100_000),
        "tif": bytes(pages),
        "bmp": bytes(bitmap),
        "webp": b"RIFF" + struct.pack("<I", len(canvas) + 4) + b"WEBP" + canvas,
        "jpg": bytes(jpeg),
    }
    for suffix, content in cases.items():
        path = put(tmp_path / f"x.{suffix}", content)
        for read in READERS:
            tracemalloc.start()
            before = time.thread_time()
            text = message(read, path)
            spent = time.thread_time() - before
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert spent < 0.1
            assert peak < 1_000_000
            assert "exceed the limit of 170,000,000" in text or "truncated or damaged" in text


def test_a_decompression_bomb(tmp_path: Path) -> None:
    # Black shrinks a thousandfold.
    path = put(tmp_path / "x.png", png_that_claims(13_039, 13_039, bytes(20_000_000)))
    assert path.stat().st_size < 100_000
    assert "13039 x 13039 pixels exceed the limit of 170,000,000" in message(read_image, path)
    # More pixels in the data than the header says.
    path = put(path, png_that_claims(10, 10, bytes(20_000_000)))
    tracemalloc.start()
    read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_an_image_that_does_not_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_image: object) -> None:
        raise MemoryError

    path = put(tmp_path / "x.png", FILES["png"])
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert "does not fit into memory" in message(read_image, path)


@pytest.mark.parametrize("name", FILES)
def test_the_limits_are_exact(tmp_path: Path, name: str) -> None:
    path = put(tmp_path / name, FILES[name])
    size = len(FILES[name])
    for read in READERS:
        read(path, limits=Limits(pixels=2000, bytes=size))
        text = message(read, path, limits=Limits(pixels=1999))
        assert "50 x 40 pixels exceed the limit of 1,999; resize the image, set MAMBAADV2" in text
        text = message(read, path, limits=Limits(bytes=size - 1))
        assert f"{size:,} bytes exceed the limit of {size - 1:,}; make the file smaller" in text


@pytest.mark.parametrize("name", FILES)
def test_pillows_own_limit_does_not_count(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / name, FILES[name])
    expected = read_image(path)
    # Warnings are errors here, and from twice the limit on Pillow refuses.
    for own in (1000, 10):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", own)
        np.testing.assert_array_equal(read_image(path), expected)
        assert own == Image.MAX_IMAGE_PIXELS


def test_limits_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAMBAADV2_MAX_PIXELS", raising=False)
    monkeypatch.delenv("MAMBAADV2_MAX_BYTES", raising=False)
    assert Limits.from_environment() == Limits() == Limits(pixels=170_000_000, bytes=2**30)
    monkeypatch.setenv("MAMBAADV2_MAX_PIXELS", "1999")
    assert Limits.from_environment() == Limits(pixels=1999)
    path = put(tmp_path / "x.png", FILES["png"])
    for read in READERS:
        assert "exceed the limit of 1,999" in message(read, path)
        read(path, limits=Limits())
    monkeypatch.setenv("MAMBAADV2_MAX_PIXELS", "300000000")
    monkeypatch.setenv("MAMBAADV2_MAX_BYTES", "100")
    assert "exceed the limit of 100;" in message(read_image, path)


@pytest.mark.parametrize("wrong", ["", "0", "-1", "1e6", "many", "1_000", "1.5", "9" * 30, "٣"])
def test_nonsense_in_the_environment(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MAMBAADV2_MAX_PIXELS", "MAMBAADV2_MAX_BYTES"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, wrong)
            with pytest.raises(ConfigError, match=f"{variable}: expected a whole number above 0"):
                Limits.from_environment()


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, None, "9"])
def test_limits_are_checked(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="pixels: expected a whole number above 0"):
        Limits(pixels=wrong)
    with pytest.raises(ConfigError, match="bytes: expected a whole number above 0"):
        Limits(bytes=wrong)


def test_a_pipe_in_the_place_of_a_file_just_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "x.png", FILES["png"])
    stat = os.stat

    def then_pipe(*args: Any, **options: Any) -> os.stat_result:
        status = stat(*args, **options)
        path.unlink()
        os.mkfifo(path)
        return status

    monkeypatch.setattr(os, "stat", then_pipe)
    done = threading.Thread(target=lambda: message(read_image, path), daemon=True)
    done.start()
    done.join(30)
    assert not done.is_alive()


def test_threads_read_side_by_side(tmp_path: Path) -> None:
    paths = [put(tmp_path / name, content) for name, content in FILES.items()]
    expected = {path: read_image(path) for path in paths}
    wrong: list[Path] = []

    def read(path: Path) -> None:
        for _ in range(20):
            if not np.array_equal(read_image(path), expected[path]):
                wrong.append(path)

    threads = [threading.Thread(target=read, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_header_says_what_decoding_gives(tmp_path: Path) -> None:
    for name, content in FILES.items():
        header = read_header(put(tmp_path / name, content))
        assert (header.height, header.width, 3) == read_image(tmp_path / name).shape
        assert (header.channels, header.bits, header.frames) == (3, 8, 1)
    assert png_bytes(PICTURE)[:8] == FILES["png"][:8]
