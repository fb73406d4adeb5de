"""TIFF: a directory of tags, written anew with those that make pixels.

The new directory stands behind the file's content, so all offsets stay as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from mambaadv2.container.layout import Layout, damaged, take, within
from mambaadv2.errors import ImageError

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Names as in the standard.
_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS, _STRIP_COUNTS = 273, 274, 277, 278, 279
_PLANAR, _TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_COUNTS = 284, 322, 323, 324, 325
_INKS, _EXTRA, _FORMAT, _SUBSAMPLING = 332, 338, 339, 530
# And the options of fax, the predictor, the palette, JPEG's tables, the meaning of YCbCr.
_KEPT = frozenset(
    {
        *(_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, 266, _STRIP_OFFSETS, _ORIENTATION),
        *(_SAMPLES, _ROWS, _STRIP_COUNTS, _PLANAR, 292, 293, 317, 320, _TILE_WIDTH, _TILE_LENGTH),
        *(_TILE_OFFSETS, _TILE_COUNTS, _INKS, _EXTRA, _FORMAT, 347, 529, _SUBSAMPLING, 531, 532),
    }
)

# Bytes of one value of each type; the types that are whole numbers without sign.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_LONG, _LONG8 = 4, 16
_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}

_MOST_STRIPS = 1_000_000
_MOST_PAGES = 10_000

_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_GREY = {(_FLOAT, 32), *((_UNSIGNED, bits) for bits in (1, 2, 4, 8, 12, 16))}
# What the pixels mean -> name, (sample format, bits) that are read.
_KINDS = {
    _WHITE_IS_ZERO: ("white-is-zero grey", _GREY),
    _BLACK_IS_ZERO: ("grey", _GREY | {(_SIGNED, 16), (_SIGNED, 32), (_UNSIGNED, 32)}),
    _RGB: ("RGB", {(_UNSIGNED, 8), (_UNSIGNED, 16)}),
    _PALETTE: ("palette", {(_UNSIGNED, bits) for bits in (1, 2, 4, 8)}),
    _CMYK: ("CMYK", {(_UNSIGNED, 8), (_UNSIGNED, 16)}),
    _YCBCR: ("YCbCr", {(_UNSIGNED, 8)}),
}
_COLOURS = {_RGB: 3, _CMYK: 4, _YCBCR: 3}
_OTHER_KINDS = {4: "a transparency mask", 8: "CIE Lab", 9: "ICC Lab", 10: "ITU Lab"}
_FORMAT_NAMES = {_UNSIGNED: "unsigned", _SIGNED: "signed", _FLOAT: "float"}


@dataclass(frozen=True, slots=True)
class _Flavour:
    """Byte order and width of a file's numbers; `big` is BigTIFF with 64-bit offsets."""

    order: str
    big: bool

    def word(self, data: bytes) -> int:
        """Read an offset."""
        return int.from_bytes(data, "little" if self.order == "<" else "big")


Tags = Mapping[int, tuple[int, int, bytes]]
"""Tag -> type, number of values, their bytes."""


def tiff_layout(file: BinaryIO, size: int) -> Layout:
    """Read the directory. Raises `ImageError`."""
    head = take(file, 0, 4)
    flavour = _Flavour("<" if head[:2] == b"II" else ">", b"+" in head)
    first = flavour.word(take(file, 8, 8) if flavour.big else take(file, 4, 4))
    tags, following = _directory(file, size, flavour, first)
    width, height = _one(flavour, tags, _WIDTH, None), _one(flavour, tags, _LENGTH, None)
    samples = _one(flavour, tags, _SAMPLES, 1)
    bits, kind = _check_kind(flavour, tags, samples)
    _check_strips(flavour, tags, (width, height), samples * bits, size)
    orientation = _one(flavour, tags, _ORIENTATION, 1)
    wrap = [_wrapped(flavour, each, size) for each in _planes(flavour, tags, samples, bits, kind)]
    return Layout(
        format="TIFF",
        width=width,
        height=height,
        channels=samples,
        bits=bits,
        frames=1 + _following_pages(file, size, flavour, first, following),
        orientation=orientation if 1 <= orientation <= 8 else 1,
        white_is_zero=kind == _WHITE_IS_ZERO,
        pictures=tuple((head, slice(len(head), size), tail) for head, tail in wrap),
    )


def _directory(file: BinaryIO, size: int, flavour: _Flavour, start: int) -> tuple[Tags, int]:
    """The tags at `start` that make pixels, and where the next page's directory starts (or 0)."""
    first, last, following = _entries(file, size, flavour, start)
    table = take(file, first, last - first)
    entry_size, inline = (20, 8) if flavour.big else (12, 4)
    tags: dict[int, tuple[int, int, bytes]] = {}
    total = 0
    for place in range(0, len(table), entry_size):
        entry = table[place : place + entry_size]
        tag, kind = struct.unpack_from(flavour.order + "HH", entry)
        if tag not in _KEPT or kind not in _SIZES or tag in tags:
            continue
        count, data = flavour.word(entry[4:-inline]), entry[-inline:]
        length = count * _SIZES[kind]
        if length > inline:
            position = flavour.word(data)
            within(position + length, size)
            total += length
            if total > size:
                raise damaged("its tags overlap")
            data = take(file, position, length)
        tags[tag] = (kind, count, data[:length])
    return tags, following


def _entries(file: BinaryIO, size: int, flavour: _Flavour, start: int) -> tuple[int, int, int]:
    """Where a directory's entries begin and end, and the offset behind them."""
    wide, entry_size, inline = (8, 20, 8) if flavour.big else (2, 12, 4)
    within(start + wide, size)
    count = flavour.word(take(file, start, wide))
    if not 0 < count <= 65_535:
        raise damaged(f"a directory of {count:,} tags")
    last = start + wide + count * entry_size
    within(last + inline, size)
    return start + wide, last, flavour.word(take(file, last, inline))


def _following_pages(file: BinaryIO, size: int, flavour: _Flavour, first: int, start: int) -> int:
    seen = {first}
    while start and start not in seen and len(seen) < _MOST_PAGES:
        seen.add(start)
        start = _entries(file, size, flavour, start)[2]
    return len(seen) - 1


def _numbers(
    flavour: _Flavour, tags: Tags, tag: int, default: tuple[int, ...] | None
) -> tuple[int, ...]:
    if tag not in tags:
        if default is None:
            raise damaged(f"tag {tag} is missing")
        return default
    kind, count, data = tags[tag]
    if kind not in _NUMBERS or not 0 < count <= _MOST_STRIPS:
        raise damaged(f"tag {tag} holds {count:,} values of type {kind}")
    numbers = struct.unpack(f"{flavour.order}{count}{_NUMBERS[kind]}", data)
    if kind == _LONG8 and max(numbers) >= 2**32:
        raise damaged(f"tag {tag} says {max(numbers):,}")
    return numbers


def _one(flavour: _Flavour, tags: Tags, tag: int, default: int | None) -> int:
    numbers = _numbers(flavour, tags, tag, None if default is None else (default,))
    if len(numbers) != 1:
        raise damaged(f"tag {tag} holds {len(numbers)} values instead of one")
    return numbers[0]


def _check_kind(flavour: _Flavour, tags: Tags, samples: int) -> tuple[int, int]:
    """Bits per sample and the photometric interpretation, if they are read at all."""
    kind = _one(flavour, tags, _PHOTOMETRIC, None)
    depths = set(_numbers(flavour, tags, _BITS, (1,)))
    formats = set(_numbers(flavour, tags, _FORMAT, (_UNSIGNED,)))
    name, read = _KINDS.get(kind, (_OTHER_KINDS.get(kind, f"pixels of kind {kind}"), set()))
    sort, bits = min(formats), min(depths)
    if len(depths) > 1 or len(formats) > 1 or (sort, bits) not in read:
        what = f"{_FORMAT_NAMES.get(sort, 'other')} {'/'.join(map(str, sorted(depths)))}-bit {name}"
    elif samples not in _samples_read(kind, bits, planar=_one(flavour, tags, _PLANAR, 1) == 2):
        what = f"{bits}-bit {name} with {samples} samples per pixel"
    elif bits == 12 and flavour.order == ">":
        what = "12-bit grey, most significant byte first,"
    elif _one(flavour, tags, _COMPRESSION, 1) == 6:
        what = "JPEG compression of the old style"
    elif kind == _CMYK and _one(flavour, tags, _INKS, 1) != 1:
        what = "inks other than CMYK"
    elif kind == _YCBCR and (
        _one(flavour, tags, _PLANAR, 1) != 1
        or (
            _one(flavour, tags, _COMPRESSION, 1) == 1
            and _numbers(flavour, tags, _SUBSAMPLING, (2, 2)) != (1, 1)
        )
    ):
        what = "YCbCr in planes, or subsampled without compression"
    else:
        return bits, kind
    raise ImageError(f"TIFF with {what} is not supported; save it as RGB or grey, 8 or 16 bits")


def _samples_read(kind: int, bits: int, *, planar: bool) -> range:
    """How many samples a pixel may have, those beside the colours included."""
    colours = _COLOURS.get(kind, 1)
    if planar and kind in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        more = 3
    elif bits == 8:
        more = {_RGB: 3, _CMYK: 2, _YCBCR: 0}.get(kind, 1)
    else:
        more = 1 if kind == _RGB else 0
    return range(colours, colours + more + 1)


def _check_strips(
    flavour: _Flavour, tags: Tags, size: tuple[int, int], pixel_bits: int, file_size: int
) -> None:
    """Are all strips or tiles there? Decoders leave black what is not."""
    width, height = size
    tiled = _TILE_OFFSETS in tags
    offsets = _numbers(flavour, tags, _TILE_OFFSETS if tiled else _STRIP_OFFSETS, None)
    counts = _numbers(flavour, tags, _TILE_COUNTS if tiled else _STRIP_COUNTS, None)
    across, down = width, min(height, _one(flavour, tags, _ROWS, height))
    if tiled:
        across = _one(flavour, tags, _TILE_WIDTH, None)
        down = _one(flavour, tags, _TILE_LENGTH, None)
    if not (across and down and width and height):
        raise damaged("strips, tiles or an image of size 0")
    planes = _one(flavour, tags, _SAMPLES, 1) if _one(flavour, tags, _PLANAR, 1) == 2 else 1
    expected = -(-width // across) * -(-height // down) * planes
    if len(offsets) != expected or len(counts) != expected:
        raise damaged(f"{len(offsets)} strips or tiles instead of {expected}")
    within(max(offset + count for offset, count in zip(offsets, counts, strict=True)), file_size)
    if _one(flavour, tags, _COMPRESSION, 1) == 1:
        rows = expected * down if tiled else height * planes
        if sum(counts) < rows * (across * (pixel_bits // planes) // 8):
            raise damaged("its strips or tiles are too short for its pixels")


def _planes(
    flavour: _Flavour, tags: Tags, samples: int, bits: int, kind: int
) -> list[dict[int, tuple[int, int, bytes]]]:
    """Directories that Pillow reads rightly: one, or one grey page for each separate plane."""

    def short(*values: int) -> tuple[int, int, bytes]:
        return 3, len(values), struct.pack(f"{flavour.order}{len(values)}H", *values)

    page = {tag: entry for tag, entry in tags.items() if tag not in (_ORIENTATION, _INKS)}
    if kind == _WHITE_IS_ZERO:
        page[_PHOTOMETRIC] = short(_BLACK_IS_ZERO)
    if bits == 32 and _numbers(flavour, tags, _FORMAT, (_UNSIGNED,))[0] == _UNSIGNED:
        # Alike as far as 65,535, and more is refused.
        page[_FORMAT] = short(_SIGNED)
    extra = _numbers(flavour, tags, _EXTRA, ())
    if _one(flavour, tags, _PLANAR, 1) != 2 or samples == 1:
        page[_PLANAR] = short(1)
        if more := samples - _COLOURS.get(kind, 1):
            # Multiplied with alpha or not is all that matters. Called alpha, 16-bit colour has both
            # its bytes, and grey is known to older versions of Pillow too.
            plain = 2 if bits == 16 or kind in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) else 0
            page[_EXTRA] = short(1 if extra[:1] == (1,) else plain, *[0] * (more - 1))
        return [page]
    if kind == _CMYK and bits == 8:
        return [page]
    if kind not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB) or 1 in extra:
        raise ImageError(
            "TIFF with separate planes that are not plain RGB or grey is not supported; "
            "save it as RGB or grey"
        )
    page |= {_PLANAR: short(1), _SAMPLES: short(1), _BITS: short(bits)}
    page |= {_PHOTOMETRIC: short(_BLACK_IS_ZERO)}
    page.pop(_EXTRA, None)
    if _FORMAT in page:
        page[_FORMAT] = short(_numbers(flavour, page, _FORMAT, None)[0])
    planes = []
    for plane in range(3 if kind == _RGB else 1):
        planes.append(dict(page))
        for tag in (_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_OFFSETS, _TILE_COUNTS):
            if tag in page:
                form, count, data = page[tag]
                part = len(data) // samples
                planes[-1][tag] = form, count // samples, data[plane * part : (plane + 1) * part]
    return planes


def _wrapped(flavour: _Flavour, tags: Tags, size: int) -> tuple[bytes, bytes]:
    """A header that points behind the content, and the directory to stand there.

    A plain TIFF's in any case: Pillow does not read every BigTIFF.
    """
    order = flavour.order
    start = size + size % 2
    if start >= 2**31:
        raise ImageError("TIFF files above 2 GiB are not supported; make the image smaller")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    table = struct.pack(order + "H", len(tags))
    behind = start + 2 + len(tags) * 12 + 4
    values = b""
    for tag, (kind, count, wide) in sorted(tags.items()):
        numbers = _numbers(flavour, tags, tag, None) if kind == _LONG8 else ()
        data = struct.pack(f"{order}{count}I", *numbers) if numbers else wide
        table += struct.pack(order + "HHI", tag, _LONG if numbers else kind, count)
        if len(data) <= 4:
            table += data.ljust(4, b"\0")
        else:
            table += struct.pack(order + "I", behind + len(values))
            values += data + bytes(len(data) % 2)
    return head, bytes(size % 2) + table + bytes(4) + values
