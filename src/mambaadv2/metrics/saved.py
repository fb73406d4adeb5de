"""Pools as files: safetensors with a version, no pickle, and every number checked on the way in.

A file holds the bins that are not empty, by rising score, so it is the same to the byte for the
same images, in whatever order and by however many workers they were counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambaadv2.errors import DataError
from mambaadv2.files import write_atomically
from mambaadv2.metrics.bootstrap import Resampling
from mambaadv2.metrics.grid import Grid, Keys
from mambaadv2.metrics.images import ImagePool
from mambaadv2.metrics.replicates import KINDS, PixelReplicates
from mambaadv2.metrics.streaming import MAX_REGIONS, WEIGHT_BITS, StreamingPool

VERSION = 1
PIXELS, IMAGES = "mambaadv2 streaming pixel metrics", "mambaadv2 image scores"

Arrays = dict[str, NDArray[Any]]


def save_pool(pool: StreamingPool, path: Path | str) -> None:
    """Write a pool; about 28 bytes for each of the bins in use, more with a resampling.

    Raises `OSError` where the file cannot be written; what was there stays.
    """
    keys, at = pool.grid.bins()
    some = np.flatnonzero(pool.grid.tables["all"][at])
    arrays: Arrays = {"keys": keys[some]}
    arrays |= {kind: table[at[some]] for kind, table in pool.grid.tables.items()}
    facts: dict[str, object] = {
        **_grid_facts(pool.grid),
        "n_images": pool.n_images,
        "n_regions": pool.n_regions,
        "bits": pool.bits,
    }
    if pool.replicates is not None:
        drawn = pool.replicates.resampling
        bins, counts = pool.replicates.counts()
        arrays |= {"replicates.keys": bins}
        arrays |= {f"replicates.{kind}": table for kind, table in counts.items()}
        facts |= {
            "seed": drawn.seed,
            "replicates": drawn.replicates,
            "groups": drawn.groups,
            "coarse": _grid_facts(pool.replicates.grid),
        }
    _write(Path(path), PIXELS, arrays, facts)


def load_pool(path: Path | str) -> StreamingPool:
    """Read what `save_pool` wrote; the pool goes on as if it had never been saved.

    Raises `DataError`, which names the file, where it is not one, is damaged, of another version,
    or holds numbers that no pool could have.
    """
    source = Path(path)
    arrays, facts = _read(source, PIXELS)
    try:
        resampling = None
        if "seed" in facts:
            resampling = Resampling(
                seed=int(facts["seed"]),
                replicates=int(facts["replicates"]),
                groups=int(facts["groups"]),
            )
        pool = StreamingPool(
            resampling=resampling, pages=int(facts["pages"]), page_bits=int(facts["page_bits"])
        )
        keys, kinds = arrays["keys"], ("all", "defect", "region")
        _fill(pool.grid, facts, keys, {kind: _whole(arrays[kind], np.int64) for kind in kinds})
        pool.n_images, pool.n_regions = int(facts["n_images"]), int(facts["n_regions"])
        pool.bits = int(facts["bits"])
        pool.n_pixels, pool.n_defect = int(arrays["all"].sum()), int(arrays["defect"].sum())
        _require_sense(pool, arrays)
        if resampling is not None:
            pool.replicates = _load_replicates(resampling, arrays, facts["coarse"])
            whole = arrays["replicates.good"][resampling.replicates :].sum()
            if whole != pool.n_pixels - pool.n_defect:
                raise ValueError(f"replicates of {whole:.0f} good pixels")
    except (KeyError, TypeError, ValueError, MemoryError) as error:
        raise DataError(f"{source}: damaged, no pool could have written it ({error})") from error
    return pool


def save_images(pool: ImagePool, path: Path | str) -> None:
    """Write the scores of images, 17 bytes for each; errors as in `save_pool`."""
    defect, scores, keys = pool.columns()
    _write(Path(path), IMAGES, {"defect": defect, "scores": scores, "keys": keys}, {})


def load_images(path: Path | str) -> ImagePool:
    """Read what `save_images` wrote; errors as in `load_pool`."""
    source = Path(path)
    arrays, _ = _read(source, IMAGES)
    try:
        return ImagePool.of(arrays["defect"], arrays["scores"], arrays["keys"])
    except (KeyError, ValueError) as error:
        raise DataError(f"{source}: damaged, no pool could have written it ({error})") from error


def _load_replicates(
    resampling: Resampling, arrays: Arrays, facts: Mapping[str, Any]
) -> PixelReplicates:
    found = PixelReplicates(
        resampling, pages=int(facts["pages"]), page_bits=int(facts["page_bits"])
    )
    rows = resampling.replicates + resampling.groups
    counts = {kind: _whole(arrays[f"replicates.{kind}"], np.float64, rows) for kind in KINDS}
    _fill(found.grid, facts, arrays["replicates.keys"], counts)
    return found


def _fill(grid: Grid, facts: Mapping[str, Any], keys: Keys, tables: Arrays) -> None:
    """Put the bins of a file in their places."""
    level = int(facts["level"])
    if not 0 <= level <= 32 - grid.page_bits:
        raise ValueError(f"level {level}")
    if keys.dtype != np.uint32 or keys.ndim != 1 or (keys & np.uint32((1 << level) - 1)).any():
        raise ValueError("keys are not bins of the level")
    if (keys[1:] <= keys[:-1]).any():
        raise ValueError("keys do not rise")
    grid.coarsen(level)
    at = grid.place(keys)
    if grid.level != level:
        raise ValueError(f"more pages than {grid.pages} at level {level}")
    for name, values in tables.items():
        if values.shape[-1] != keys.size:
            raise ValueError(f"{name} has shape {values.shape}, keys have {keys.shape}")
        grid.tables[name][..., at] = values


def _whole(values: NDArray[Any], dtype: type[np.generic], rows: int | None = None) -> NDArray[Any]:
    """The array, if it holds counts: of the dtype, (T,) or (rows, T), whole and not below 0."""
    lead = () if rows is None else (rows,)
    if values.dtype != dtype or values.shape[:-1] != lead or values.ndim != len(lead) + 1:
        raise ValueError(f"expected {np.dtype(dtype)}, got {values.dtype} of shape {values.shape}")
    if not (np.isfinite(values) & (values >= 0) & (values == np.floor(values))).all():
        raise ValueError("counts must be whole numbers, not below 0")
    return values


def _require_sense(pool: StreamingPool, arrays: Arrays) -> None:
    if (arrays["defect"] > arrays["all"]).any() or not arrays["all"].all():
        raise ValueError("more defect pixels than pixels, or an empty bin")
    if ((arrays["region"] > 0) != (arrays["defect"] > 0)).any():
        raise ValueError("region weights and defect pixels in different bins")
    weights = int(arrays["region"].sum())
    if not 0 <= pool.n_regions <= MAX_REGIONS or weights != pool.n_regions << WEIGHT_BITS:
        raise ValueError(f"the weights are not those of {pool.n_regions} regions")
    if pool.n_images < 0 or (pool.n_pixels and not pool.n_images):
        raise ValueError(f"{pool.n_pixels} pixels in {pool.n_images} images")


def _grid_facts(grid: Grid) -> dict[str, int]:
    return {"level": grid.level, "pages": grid.pages, "page_bits": grid.page_bits}


def _write(path: Path, kind: str, arrays: Arrays, facts: Mapping[str, object]) -> None:
    from safetensors.numpy import save

    contiguous = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    known = {"kind": kind, "version": VERSION, **facts}
    text = json.dumps({**known, "sha256": _digest(contiguous, known)}, sort_keys=True)
    write_atomically(path, save(contiguous, metadata={"facts": text}))


def _digest(arrays: Arrays, facts: Mapping[str, object]) -> str:
    """SHA-256 of all that a file says."""
    known = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, values in sorted(arrays.items()):
        known.update(f"{name} {values.dtype} {values.shape}".encode())
        known.update(np.ascontiguousarray(values).data)
    return known.hexdigest()


def _read(path: Path, kind: str) -> tuple[Arrays, dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as saved metrics ({error})") from error
    if not isinstance(facts, dict) or facts.get("kind") != kind:
        came = facts.get("kind") if isinstance(facts, dict) else None
        raise DataError(f"{path}: expected {kind!r}, got {came or 'a file of another program'!r}")
    if facts.get("version") != VERSION:
        raise DataError(
            f"{path}: version {facts.get('version')} of the format, this program reads {VERSION}; "
            "read it with the program that wrote it, or measure again"
        )
    if facts.pop("sha256", None) != _digest(arrays, facts):
        raise DataError(f"{path}: damaged, its content is not what was written; measure again")
    return arrays, facts
