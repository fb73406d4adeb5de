"""Data sets with a folder per class: MVTec's four, BTAD, and those that keep MVTec AD's layout.

ROOT/<class>/... , or the folder of one class:

    train/good/*            normal images, the only ones that training may see
    test/good/*             normal images for evaluation
    test/<defect>/*         images with a defect of that type
    ground_truth/<defect>/  one mask per defect image: <stem>_mask.png or <stem>.png

Each function lists one layout; its docstring says where it differs and where that was read.
`recognised` says which of them a folder has, by asking which folders exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mambaadv2.data.layouts.class_folders import Shape, class_folders, class_listing
from mambaadv2.data.layouts.tree import Draft, entries_of, has, some
from mambaadv2.data.record import Ask, Listing
from mambaadv2.errors import DataError

AD = Shape()
AD_2 = Shape(
    test="test_public",
    truth="test_public/ground_truth",
    validation="validation",
    apart=("test_private", "test_private_mixed"),
)
LOCO = Shape(validation="validation", masks="<stem>/")
THREE_D = Shape(validation="validation", images="rgb", masks="gt/")
OK_KO = Shape(good="ok")

LOCO_KINDS = ("logical_anomalies", "structural_anomalies")

PUBLISHED: Mapping[str, frozenset[str]] = {
    "mpdd": frozenset(
        {"bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate", "tubes"}
    ),
    "uni-medical": frozenset({"brain", "liver", "retinal"}),
    "mad-sim": frozenset(
        {
            *("01Gorilla", "02Unicorn", "03Mallard", "04Turtle", "05Whale", "06Bird", "07Owl"),
            *("08Sabertooth", "09Swan", "10Sheep", "11Pig", "12Zalika", "13Pheonix"),
            *("14Elephant", "15Parrot", "16Cat", "17Scorpion", "18Obesobeso", "19Bear", "20Puppy"),
        }
    ),
    "mad-real": frozenset(
        {
            *("Bear", "Bird", "Elephant", "Parrot", "Pig", "Puppy", "Scorpion", "Turtle"),
            *("Unicorn", "Whale"),
        }
    ),
    "visa-copy": frozenset(
        {
            *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2"),
            *("pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum"),
        }
    ),
}
"""Data sets in MVTec AD's own layout -> the names of their classes, from ADer's
data/gen_benchmark/{mpdd,medical,mad_sim,mad_real,visa}.py."""


def mvtec_ad(root: Path, ask: Ask) -> Listing:
    """MVTec AD, as at the top of this file.

    Source: Bergmann et al., CVPR 2019, and the readme of the data set.
    """
    return class_listing(root, ask, AD)


def mvtec_ad_2(root: Path, ask: Ask) -> Listing:
    """MVTec AD 2: test is test_public/{good,bad}/, its masks test_public/ground_truth/bad/.

    validation/good/ is the split "validation". test_private/ and test_private_mixed/ come without
    labels, so they can only be predicted, and are not looked into.

    Source: Heckler-Kram et al., arXiv 2503.21622; anomalib,
    src/anomalib/data/datasets/image/mvtecad2.py.
    """
    return class_listing(root, ask, AD_2)


def mvtec_loco(root: Path, ask: Ask) -> Listing:
    """MVTec LOCO AD: types logical_anomalies and structural_anomalies, a folder of masks per image.

    The masks are ground_truth/<type>/<stem>/000.png, 001.png and so on, one per defect; their union
    counts. Every value above 0 is defect: the values name entries of defects_config.json, which
    only the saturated PRO of the paper needs. validation/good/ is the split "validation".

    Source: Bergmann et al., IJCV 130 (2022); anomalib,
    src/anomalib/data/datasets/image/mvtec_loco.py.
    """
    return class_listing(root, ask, LOCO)


def mvtec_3d(root: Path, ask: Ask) -> Listing:
    """MVTec 3D-AD, its colour images: <split>/<type>/rgb/*.png with masks in gt/ beside.

    The point clouds in xyz/ are not looked at, nor are the empty masks of good test images.
    validation/good/rgb/ is the split "validation".

    Source: Bergmann et al., VISAPP 2022; ADer, data/gen_benchmark/mvtec.py; anomalib,
    src/anomalib/data/datasets/depth/mvtec_3d.py.
    """
    return class_listing(root, ask, THREE_D)


def btad(root: Path, ask: Ask) -> Listing:
    """BTAD: normal images are in ok/, defects in ko/, masks in ground_truth/ko/<stem>.png or .bmp.

    Source: Mishra et al., ISIE 2021; ADer, data/gen_benchmark/btad.py; anomalib,
    src/anomalib/data/datasets/image/btech.py.
    """
    return class_listing(root, ask, OK_KO)


def mpdd(root: Path, ask: Ask) -> Listing:
    """MPDD: MVTec AD's layout with six classes of painted metal.

    Source: Jezek et al., ICUMT 2021; ADer, data/gen_benchmark/mpdd.py.
    """
    return _published(root, ask, "mpdd")


def uni_medical(root: Path, ask: Ask) -> Listing:
    """Uni-Medical: MVTec AD's layout with the classes brain, liver and retinal.

    Source: Zhang et al. (ViTAD), arXiv 2312.07495, after BMAD; ADer, data/gen_benchmark/medical.py.
    That script pairs images and masks by their order; here they pair by name. The names of the mask
    files could not be verified: images without a mask of their name are named as problems.
    """
    return _published(root, ask, "uni-medical")


def mad_sim(root: Path, ask: Ask) -> Listing:
    """MAD-Sim: MVTec AD's layout with 20 rendered toys, masks <stem>_mask.png.

    Source: Zhou et al., NeurIPS 2023, and the readme of github.com/EricLee0224/PAD; ADer,
    data/gen_benchmark/mad_sim.py.
    """
    return _published(root, ask, "mad-sim")


def mad_real(root: Path, ask: Ask) -> Listing:
    """MAD-Real: MVTec AD's layout with 10 photographed toys, masks <stem>.png.

    Source: as `mad_sim`; ADer, data/gen_benchmark/mad_real.py.
    """
    return _published(root, ask, "mad-real")


def visa_copy(root: Path, ask: Ask) -> Listing:
    """VisA as its own script rearranges it: MVTec AD's layout, defects in bad/, masks <stem>.png.

    Source: github.com/amazon-science/spot-diff, utils/prepare_data.py with split_csv/1cls.csv,
    which makes VisA_pytorch/1cls/.
    """
    return _published(root, ask, "visa-copy")


def recognised(root: Path) -> dict[str, str]:
    """Return layout -> reason for every layout of this file that some class folder in `root` has.

    Asks only whether folders exist; what is in train/ and test/ is not listed. Raises `DataError`
    for a root that cannot be listed.
    """
    root_is_class = has(root, "train") or has(root, "test") or has(root, AD_2.test)
    folders = (root,) if root_is_class else entries_of(root).folders
    found: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for folder in folders:
        for name, reason in _marks_of(folder):
            found.setdefault(name, []).append(folder.resolve().name)
            reasons.setdefault(name, reason)
    answers = {name: f"{reasons[name]} in {some(found[name], 3)}" for name in found}
    classes = frozenset(found.get("mvtec", ()))
    for name, published in PUBLISHED.items():
        if classes == published:
            answers[name] = f"{answers.pop('mvtec')}, which are the {len(published)} classes of it"
    return answers


def has_class_folders(root: Path) -> bool:
    """Return whether the folder or one inside it has train/ or test/. Raises as `recognised`."""
    folders = (root, *entries_of(root).folders)
    return any(has(folder, "train") or has(folder, "test") for folder in folders)


def _marks_of(folder: Path) -> list[tuple[str, str]]:
    """Layouts of a class's folder, with what tells them."""
    if any(has(folder, name) for name in (AD_2.test, *AD_2.apart)):
        return [("mvtec-ad2", "test_public/, test_private/")]
    if any(has(folder, f"test/{kind}") for kind in LOCO_KINDS):
        return [("mvtec-loco", "test/logical_anomalies/ or test/structural_anomalies/")]
    if any(has(folder, f"{part}/good/rgb") for part in ("train", "test")):
        return [("mvtec-3d", "good/rgb/")]
    marks = []
    if any(has(folder, f"{part}/ok") for part in ("train", "test")):
        marks.append(("btad", "train/ok/ or test/ok/"))
    if any(has(folder, f"{part}/good") for part in ("train", "test")):
        marks.append(("mvtec", "train/good/ or test/good/"))
    return marks


def _published(root: Path, ask: Ask, name: str) -> Listing:
    """As MVTec AD, for a data set whose classes are known."""
    known = PUBLISHED[name]
    folders = class_folders(root, AD, Draft())
    if strangers := sorted(set(folders) - known):
        raise DataError(
            f"{root}: expected class folders of {name} ({some(sorted(known))}), found "
            f"{some(strangers)}; name the layout mvtec for other data in the same folders"
        )
    return class_listing(root, ask, AD)
