"""Layouts of data sets: a function each, and how a data set's layout is recognised.

Every function takes the data set's path and an `Ask`, lists what is asked for and names what it
cannot use. docs/datasets.md says where the data sets come from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from mambaadv2.data.layouts import ader, exports, mvtec, plain, real_iad, surfaces, visa
from mambaadv2.data.layouts.tree import head_of
from mambaadv2.data.manifest import MANIFEST_SUFFIXES, manifest_listing
from mambaadv2.data.record import Ask, Listing
from mambaadv2.errors import DataError
from mambaadv2.names import did_you_mean

__all__ = ["LAYOUTS", "NOTHING_TELLS", "named_layout", "recognised_layout"]

LAYOUTS: Mapping[str, Callable[[Path, Ask], Listing]] = {
    "mvtec": mvtec.mvtec_ad,
    "mvtec-ad2": mvtec.mvtec_ad_2,
    "mvtec-loco": mvtec.mvtec_loco,
    "mvtec-3d": mvtec.mvtec_3d,
    "btad": mvtec.btad,
    "mpdd": mvtec.mpdd,
    "uni-medical": mvtec.uni_medical,
    "mad-sim": mvtec.mad_sim,
    "mad-real": mvtec.mad_real,
    "visa": visa.visa,
    "visa-copy": mvtec.visa_copy,
    "real-iad": real_iad.real_iad,
    "real-iad-sv": real_iad.real_iad_sv,
    "coco-ad": ader.coco_ad,
    "ader": ader.ader,
    "kolektor-sdd2": surfaces.kolektor_sdd2,
    "dagm": surfaces.dagm,
    "elpv": surfaces.elpv,
    "datumaro": exports.datumaro,
    "lookout": exports.lookout,
    "folder": plain.folder,
    "csv": manifest_listing,
    "jsonl": manifest_listing,
    "parquet": manifest_listing,
}
"""Name -> function (path, ask) -> listing."""

NOTHING_TELLS = "nothing tells of another layout"
"""The reason where MVTec AD's layout is taken so that it says what is missing."""

SIBLINGS = frozenset({"real-iad", "real-iad-sv"})
"""The same images split in two ways; where both splits are there, the first is meant."""


def named_layout(name: str) -> str:
    """Return the name. Raises `DataError`, with the closest one, for a name that is none."""
    if name not in LAYOUTS:
        hint = did_you_mean(name, LAYOUTS, cutoff=0.5)
        raise DataError(f"layout: no layout {name!r}{hint}; there are {', '.join(LAYOUTS)}")
    return name


def recognised_layout(data: Path) -> tuple[str, str]:
    """Return the name of a data set's layout and what it was recognised by.

    Looks at names of files and folders and at the beginnings of lists, never at an image. A folder
    that nothing fits is taken for MVTec AD's layout, which then says what is missing.

    Raises `DataError` where there is nothing, where a file is no list, and where several layouts
    fit, with all of them.
    """
    if os.path.isdir(data):
        found = _of_folder(data)
    elif os.path.isfile(data):
        found = _of_file(data)
    else:
        raise DataError(
            f"{data}: expected the folder of a data set or a list of images (.csv, .jsonl, "
            ".parquet, .json, .manifest), found nothing of that name"
        )
    if len(found) > 1:
        candidates = "".join(f"\n  {name}: {reason}" for name, reason in found.items())
        raise DataError(
            f"{data}: {len(found)} layouts fit:{candidates}\n"
            f'Say which is meant: --layout {next(iter(found))}, or layout="..." in Python'
        )
    return next(iter(found.items()))


def _of_folder(data: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for recognised in (
        *(mvtec.recognised, visa.recognised, real_iad.recognised, ader.recognised),
        *(surfaces.recognised, exports.recognised),
    ):
        found |= recognised(data)
    if set(found) >= SIBLINGS:
        del found["real-iad-sv"]
    # Only where nothing more telling is there: a good/ may lie in any of them.
    return found or _of_plain_folder(data)


def _of_plain_folder(data: Path) -> dict[str, str]:
    classes = mvtec.has_class_folders(data)
    found = {} if classes else plain.recognised(data)
    reason = "folders with train/ or test/" if classes else NOTHING_TELLS
    return found or {"mvtec": reason}


def _of_file(data: Path) -> dict[str, str]:
    suffix = data.suffix.lower()
    if suffix == ".csv" and visa.is_table(data):
        return {"visa": f"the columns {', '.join(visa.COLUMNS)}"}
    if suffix in (".jsonl", ".manifest", ".json") and exports.is_lookout(data):
        return {"lookout": 'lines with "source-ref"'}
    if suffix in MANIFEST_SUFFIXES:
        return {suffix.removeprefix("."): f"a file that ends with {suffix}"}
    if suffix == ".json" and ader.is_meta(data):
        return {ader.name_of(data): 'entries with "img_path"'}
    if suffix == ".json" and exports.is_datumaro(data):
        return {"datumaro": '"categories" and "items"'}
    found = "an empty file" if not head_of(data, 1) else "a file of another kind"
    raise DataError(
        f"{data}: expected the folder of a data set or a list of images (.csv, .jsonl, .parquet; "
        f".json of ADer or Datumaro; .manifest of Lookout for Vision), found {found}"
    )
