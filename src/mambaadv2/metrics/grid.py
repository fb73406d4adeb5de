"""A grid for scores that is fixed beforehand, the same for everybody, and fine where scores are.

The bits of a float32, its sign turned round, are an unsigned number of 32 bits that rises with the
value: `ordered_keys`. Level s of the grid drops the s lowest of them, so a bin holds 2^s
neighbouring float32 values: nothing is lost at level 0, and at level s a bin of positive scores is
at most 2^(s - 23) of its score wide. No range is guessed and no outlier stretches anything.

Bins come in pages of `2 ** page_bits` neighbours, and a page becomes memory when a score falls into
it. When the pages run out, the level rises by one and pairs of bins are added up. So the level is
the lowest at which all scores seen fit, whatever their order and however they were divided among
workers: a histogram is a function of the scores alone, and histograms of different levels add up
to exactly what one pass over everything gives. (Our choice; collapsing pairs of bins uniformly is
from UDDSketch, Epicoco et al. 2020.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint32]
Bins = NDArray[np.int64]

KEY_BITS = 32
MOST = 2**24
_SIGN = np.uint32(0x8000_0000)


def ordered_keys(scores: NDArray[np.float32]) -> Keys:
    """Numbers in the order of the scores, of their shape; equal scores get equal ones, -0 is 0.

    scores: float32, finite.

    >>> keys = ordered_keys(np.array([-2.0, -0.0, 0.0, 1.0], dtype=np.float32))
    >>> (keys[1:] >= keys[:-1]).all(), keys[1] == keys[2], key_scores(keys)
    (np.True_, np.True_, array([-2.,  0.,  0.,  1.], dtype=float32))
    """
    bits = (scores + np.float32(0)).view(np.uint32)  # -0.0 + 0.0 is 0.0
    flip = (bits.view(np.int32) >> 31).view(np.uint32)
    flip |= _SIGN
    bits ^= flip
    return bits


def key_scores(keys: Keys) -> NDArray[np.float32]:
    """The scores of `ordered_keys`; of a bin's lowest key, its lowest score."""
    flip = np.where(keys & _SIGN, _SIGN, np.uint32(0xFFFF_FFFF))
    return (keys ^ flip).view(np.float32)


class Grid:
    """Histograms over one adaptive grid.

    pages: at most in memory. page_bits: a page has `2 ** page_bits` bins. The two must allow the
    coarsest level to hold every float32: `pages` is a power of two.
    tables: name -> (leading shape, dtype); each becomes an array (*leading, bins) in `tables`, to
    be written to at the indices that `place` gives.
    """

    def __init__(
        self,
        pages: int,
        page_bits: int,
        tables: Mapping[str, tuple[tuple[int, ...], type[np.int64] | type[np.float64]]],
    ) -> None:
        if (
            pages < 1
            or pages & (pages - 1)
            or not 8 <= page_bits <= 16
            or pages << page_bits > MOST
        ):
            raise ValueError(
                f"pages must be a power of two, page_bits 8..16 and the bins at most {MOST}; "
                f"got {pages} pages and {page_bits} bits"
            )
        self.pages, self.page_bits = pages, page_bits
        self.level = 0
        self._first: Bins = np.empty(0, dtype=np.int64)
        self._scratch = np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.int64)
        self._prefixes: Keys = np.empty(0, dtype=np.uint32)  # of the pages, in the order they came
        # The first page is nobody's, so that 0 can say that there is none. Zeros that nobody
        # touches are no memory.
        bins = (pages + 1) << page_bits
        self.tables: dict[str, NDArray[Any]] = {
            name: np.zeros((*lead, bins), dtype=dtype) for name, (lead, dtype) in tables.items()
        }

    @property
    def size(self) -> int:
        """Bins of a page."""
        return 1 << self.page_bits

    @property
    def used(self) -> int:
        """Pages in memory."""
        return self._prefixes.size

    def place(self, keys: Keys) -> Bins:
        """Index into the tables of each key, (N,) both; raises the level if need be.

        What is returned is the grid's own array, written over by the next call.
        """
        found = self._find(keys)
        if found is None:
            self._make_room(np.unique(keys >> np.uint32(self.level + self.page_bits)))
            found = self._find(keys)
            assert found is not None
        return found

    def coarsen(self, level: int) -> None:
        """Go to a level that is not below the present one."""
        while self.level < level:
            self._coarsen()
        self._index_pages()

    def bins(self) -> tuple[Keys, Bins]:
        """All bins of all pages (N,): their lowest keys, rising, and where they stand."""
        bins = self.used << self.page_bits
        at = self._in_order(np.arange(bins + self.size, dtype=np.int64))
        return self.keys_of(np.arange(bins, dtype=np.int64)), at

    def counts(self, name: str) -> NDArray[Any]:
        """A table's bins in the order of `bins`, (..., N)."""
        return self._in_order(self.tables[name])

    def keys_of(self, numbers: Bins) -> Keys:
        """The lowest keys of bins, by their numbers in the order of `bins`."""
        prefixes = np.sort(self._prefixes).astype(np.int64)[numbers >> self.page_bits]
        low: Bins = (prefixes << self.page_bits) + (numbers & (self.size - 1))
        return (low << self.level).astype(np.uint32)

    def absorb(self, other: Grid) -> None:
        """Add another's tables, of the same names and shapes, which stays as it is."""
        keys, theirs = other.bins()
        self.coarsen(max(self.level, other.level))
        if not keys.size:
            return
        ours = self.place(keys)
        starts = np.flatnonzero(np.diff(ours, prepend=-1))  # of those that are one bin here
        for name, table in self.tables.items():
            added = np.add.reduceat(other.tables[name][..., theirs], starts, axis=-1)
            table[..., ours[starts]] += added

    def _find(self, keys: Keys) -> Bins | None:
        """As `place`; None where a page is missing."""
        if not self.used:
            return None if keys.size else np.empty(0, dtype=np.int64)
        if self._scratch[0].size != keys.size:
            self._scratch = np.empty(keys.size, np.uint32), np.empty(keys.size, np.int64)
        part, found = self._scratch
        np.right_shift(keys, np.uint32(self.level + self.page_bits), out=part)
        np.take(self._first, part, out=found, mode="clip")  # "raise" would take another copy
        if keys.size and not found.min():
            return None
        np.right_shift(keys, np.uint32(self.level), out=part)
        part &= np.uint32(self.size - 1)
        found += part
        return found

    def _in_order(self, table: NDArray[Any]) -> NDArray[Any]:
        """The pages of a table by rising score, (..., N), the first left out."""
        order = np.argsort(self._prefixes) + 1
        pages = table.reshape(*table.shape[:-1], -1, self.size)[..., order, :]
        return pages.reshape(*table.shape[:-1], -1)

    def _make_room(self, wanted: Keys) -> None:
        """Add pages for prefixes of the present level, coarsening until they fit."""
        while np.union1d(self._prefixes, wanted).size > self.pages:
            self._coarsen()
            wanted = np.unique(wanted >> np.uint32(1))
        new = np.setdiff1d(wanted, self._prefixes)
        self._prefixes = np.concatenate((self._prefixes, new))
        self._index_pages()

    def _coarsen(self) -> None:
        half = self.size // 2
        merged = np.unique(self._prefixes >> np.uint32(1))
        for name, table in self.tables.items():
            if not self.used:
                break
            wider = np.zeros_like(table)
            for page, prefix in enumerate(self._prefixes.tolist(), start=1):
                part = table[..., page * self.size : (page + 1) * self.size]
                start = (int(np.searchsorted(merged, np.uint32(prefix >> 1))) + 1) * self.size
                start += (prefix & 1) * half
                wider[..., start : start + half] = part[..., ::2] + part[..., 1::2]
            self.tables[name] = wider
        self.level += 1
        self._prefixes = merged

    def _index_pages(self) -> None:
        """`_first`: by prefix, the index of its page's first bin; 0 without a page."""
        bits = KEY_BITS - self.level - self.page_bits
        if self._first.size != 1 << bits:
            self._first = np.zeros(1 << bits, dtype=np.int64)
        self._first[self._prefixes] = np.arange(1, self.used + 1) << self.page_bits
