"""Tiny data sets of every layout, drawn by code: pictures of 4 x 3 pixels, masks of the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mambaadv2.data.record import Listing
from mambaadv2.image import write_png

IMAGE = np.full((3, 4, 3), 90, np.uint8)
MARKED = np.zeros((3, 4), np.uint8)
MARKED[1, 2] = 255
EMPTY = np.zeros((3, 4), np.uint8)
# White around one green pixel, as Lookout for Vision has it.
COLOURED = np.full((3, 4, 3), 255, np.uint8)
COLOURED[2, 0] = (44, 160, 44)


def short(listing: Listing) -> list[tuple[str, str, str, str | None]]:
    """(split, label, image's name, mask's name) of every record."""
    return [
        (r.split, r.defect_type, r.path.name, r.mask.name if r.mask else None)
        for r in listing.records
    ]


def messages(listing: Listing) -> list[str]:
    return [problem.message for problem in listing.problems]


def draw(root: Path, *names: str) -> None:
    """Write pictures; in folders of masks, and with a mask's ending, a mask of one pixel."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = path.relative_to(root).parts
        mask = {"ground_truth", "gt", "Masks", "masks", "Label"} & set(parts)
        write_png(path, MARKED if mask or path.stem.endswith("_mask") else IMAGE)


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def mvtec(root: Path, name: str = "nut", mask: str = "_mask") -> None:
    draw(root / name, "train/good/0.png", "train/good/1.png", "test/good/0.png", "test/cut/0.png")
    draw(root / name, f"ground_truth/cut/0{mask}.png")


def mvtec_ad2(root: Path) -> None:
    can = root / "can"
    draw(can, "train/good/0_regular.png", "validation/good/1_regular.png")
    draw(can, "test_public/good/2_regular.png", "test_public/bad/3_regular.png")
    draw(can, "test_public/ground_truth/bad/3_regular_mask.png")
    draw(can, "test_private/4_regular.png", "test_private_mixed/5_shift_1.png")


def mvtec_loco(root: Path) -> None:
    pins = root / "pushpins"
    draw(pins, "train/good/0.png", "validation/good/0.png", "test/good/0.png")
    draw(pins, "test/logical_anomalies/0.png", "test/structural_anomalies/0.png")
    draw(pins, *(f"ground_truth/logical_anomalies/0/{i:03}.png" for i in range(3)))
    draw(pins, "ground_truth/structural_anomalies/0/000.png")
    other = np.zeros((3, 4), np.uint8)
    other[0, 0] = 200  # another defect, with the value of its own entry
    write_png(pins / "ground_truth/logical_anomalies/0/001.png", other)
    write(pins, "defects_config.json", "[]")


def mvtec_3d(root: Path) -> None:
    bagel = root / "bagel"
    for part, kinds in (("train", ["good"]), ("validation", ["good"]), ("test", ["good", "hole"])):
        for kind in kinds:
            draw(bagel / part / kind, "rgb/000.png")
            write(bagel / part / kind, "xyz/000.tiff", "not looked at")
            if part == "test":
                draw(bagel / part / kind, "gt/000.png")
    write(bagel, "calibration/camera_parameters.json", "{}")


def btad(root: Path) -> None:
    draw(root / "01", "train/ok/0000.bmp", "test/ok/0001.bmp", "test/ko/0000.bmp")
    draw(root / "01", "ground_truth/ko/0000.png")
    draw(root / "03", "train/ok/0000.bmp", "test/ok/0001.bmp", "test/ko/0002.bmp")
    draw(root / "03", "ground_truth/ko/0002.bmp")


def visa(root: Path) -> None:
    images = "candle/Data/Images"
    draw(
        root, f"{images}/Normal/0000.JPG", f"{images}/Normal/0001.JPG", f"{images}/Anomaly/000.JPG"
    )
    draw(root, "candle/Data/Masks/Anomaly/000.png")
    rows = [
        "object,split,label,image,mask",
        f"candle,train,normal,{images}/Normal/0000.JPG,",
        f"candle,test,normal,{images}/Normal/0001.JPG,",
        f"candle,test,anomaly,{images}/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png",
    ]
    write(root, "split_csv/1cls.csv", "\n".join(rows) + "\n")


def real_iad(root: Path, size: str = "realiad_1024", jsons: str = "realiad_jsons") -> None:
    def item(kind: str, image: str, mask: str | None = None) -> dict[str, Any]:
        draw(root / size / "usb", image, *([mask] if mask else []))
        return {"category": "usb", "anomaly_class": kind, "image_path": image, "mask_path": mask}

    stem = "NG/BX/S0007/usb_0007_NG_BX"
    content = {
        "meta": {"prefix": "usb/", "normal_class": "OK", "pre_transform": False},
        "train": [item("OK", f"OK/S0001/usb_0001_OK_C{view}_2023.jpg") for view in (1, 2)],
        "test": [
            item("OK", "OK/S0002/usb_0002_OK_C1_2023.jpg"),
            item("BX", f"{stem}_C1_2023.jpg", f"{stem}_C1_2023_mask.png"),
            item("OK", f"{stem}_C2_2023.jpg"),
        ],
    }
    write(root, f"{jsons}/usb.json", json.dumps(content))


def ader_content(root: Path, folder: str = "nut") -> dict[str, Any]:
    def item(path: str, mask: str = "", kind: str = "") -> dict[str, Any]:
        draw(root, path, *([mask] if mask else []))
        names = {"img_path": path, "mask_path": mask, "cls_name": "nut", "specie_name": kind}
        return names | {"anomaly": int(bool(mask))}

    return {
        "train": {"nut": [item(f"{folder}/a.png"), item(f"{folder}/b.png")]},
        "validation": {"nut": [item(f"{folder}/v.png")]},
        "test": {
            "nut": [
                item(f"{folder}/c.png"),
                item(f"{folder}/d.png", f"{folder}/masks/d.png"),
                item(f"{folder}/e.png", f"{folder}/masks/e.png", "cut"),
            ]
        },
    }


def ader(root: Path) -> None:
    write(root, "meta.json", json.dumps(ader_content(root)))


def coco_ad(root: Path) -> None:
    content = ader_content(root, "val2017")
    del content["validation"]
    write(root, "meta_20_2.json", json.dumps(content))
    write(root, "annotations/instances_val2017.json", '{"categories": [], "images": []}')


def kolektor(root: Path) -> None:
    for split, marked in (("train", {"10001"}), ("test", {"20001"})):
        for stem in ("10000", "10001") if split == "train" else ("20000", "20001"):
            draw(root / split, f"{stem}.png")
            write_png(root / split / f"{stem}_GT.png", MARKED if stem in marked else EMPTY)


def dagm(root: Path) -> None:
    for part, stem in (("Train", "0576"), ("Test", "0001")):
        folder = root / "Class1" / part
        defect = f"{int(stem) + 1:04}"
        draw(folder, f"{stem}.PNG", f"{defect}.PNG", f"Label/{defect}_label.PNG")
        lines = ["1", f"{stem}\t0\t{stem}.PNG\t0\t0"]
        lines += [f"{defect}\t1\t{defect}.PNG\t0\t{defect}_label.PNG"]
        write(folder, "Label/Labels.txt", "\n".join(lines))


def elpv(root: Path) -> None:
    values = ["0.0"] * 20 + ["0.3333333333333333", "0.6666666666666666", "1.0"]
    lines = []
    for place, value in enumerate(values, start=1):
        draw(root, f"images/cell{place:04}.png")
        kind = "mono" if place % 2 else "poly"
        lines.append(f"images/cell{place:04}.png  {value:<18}  {kind}")
    write(root, "labels.csv", "\n".join(lines) + "\n")


def datumaro(root: Path) -> None:
    draw(root / "images/default", "a.png", "b.png", "c.png")
    shape = {"id": 1, "type": "polygon", "label_id": 1, "points": [0, 0, 2, 0, 2, 2]}
    good, bad = ({"type": "label", "label_id": place} for place in (0, 1))
    content = {
        "dm_format_version": "1.0",
        "infos": {},
        "categories": {"label": {"labels": [{"name": "Normal"}, {"name": "Anomalous"}]}},
        "items": [
            {"id": "a", "annotations": [good], "image": {"path": "a.png"}},
            {"id": "b", "annotations": [bad, shape], "image": {"path": "b.png"}},
            {"id": "c", "annotations": [good], "media": {"path": "c.png"}},
        ],
    }
    write(root, "annotations/default.json", json.dumps(content))


def lookout_line(name: str, kind: str, mask: str | None = None) -> str:
    about = {"class-name": kind, "type": "groundtruth/image-classification", "confidence": 1}
    item: dict[str, Any] = {
        "source-ref": f"s3://bucket/board/{name}",
        "anomaly-label": int(kind != "normal"),
        "anomaly-label-metadata": about,
    }
    if mask:
        colours = {
            "0": {"class-name": "BACKGROUND", "hex-color": "#FFFFFF"},
            "1": {"class-name": "scratch", "hex-color": "#2ca02c"},
        }
        item["anomaly-mask-ref"] = f"s3://bucket/board/{mask}"
        about = {"type": "groundtruth/semantic-segmentation", "internal-color-map": colours}
        item["anomaly-mask-ref-metadata"] = about
    return json.dumps(item) + "\n"


def lookout(root: Path) -> None:
    draw(root, "train/a.png", "test/b.png", "test/c.png")
    write_png(root / "test/c_seg.png", COLOURED)
    write(root, "train.manifest", lookout_line("train/a.png", "normal"))
    lines = lookout_line("test/b.png", "normal")
    lines += lookout_line("test/c.png", "anomaly", "test/c_seg.png")
    write(root, "test.manifest", lines)


def plain(root: Path) -> None:
    draw(root, "good/a.png", "good/b.png", "good_test/c.png", "bent/d.png", "cut/e.png")
    draw(root, "ground_truth/bent/d.png", "ground_truth/cut/e_mask.png")


def published(layout: str, *classes: str, mask: str = "_mask") -> Callable[[Path], None]:
    def build(root: Path) -> None:
        for name in classes:
            mvtec(root, name, mask)

    build.__name__ = layout
    return build


TREES: Mapping[str, Callable[[Path], None]] = {
    "mvtec": mvtec,
    "mvtec-ad2": mvtec_ad2,
    "mvtec-loco": mvtec_loco,
    "mvtec-3d": mvtec_3d,
    "btad": btad,
    "mpdd": published(
        "mpdd",
        *("bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate", "tubes"),
    ),
    "uni-medical": published("uni_medical", "brain", "liver", "retinal", mask=""),
    "mad-sim": published(
        "mad_sim",
        *("01Gorilla", "02Unicorn", "03Mallard", "04Turtle", "05Whale", "06Bird", "07Owl"),
        *("08Sabertooth", "09Swan", "10Sheep", "11Pig", "12Zalika", "13Pheonix", "14Elephant"),
        *("15Parrot", "16Cat", "17Scorpion", "18Obesobeso", "19Bear", "20Puppy"),
    ),
    "mad-real": published(
        "mad_real",
        *("Bear", "Bird", "Elephant", "Parrot", "Pig", "Puppy", "Scorpion", "Turtle", "Unicorn"),
        "Whale",
        mask="",
    ),
    "visa": visa,
    "visa-copy": published(
        "visa_copy",
        *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2"),
        *("pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum"),
        mask="",
    ),
    "real-iad": real_iad,
    "real-iad-sv": lambda root: real_iad(root, jsons="realiad_jsons_sv"),
    "coco-ad": coco_ad,
    "ader": ader,
    "kolektor-sdd2": kolektor,
    "dagm": dagm,
    "elpv": elpv,
    "datumaro": datumaro,
    "lookout": lookout,
    "folder": plain,
}
"""Layout -> what draws a data set of it into an empty folder; lists as files are not here."""
