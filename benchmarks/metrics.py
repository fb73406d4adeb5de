"""Speed, memory and accuracy of the metrics beside what others offer.

    scripts/bench metrics [--images 200] [--cache FOLDER] [--no-peers] [--out FILE]

All contenders get the same maps of 256 x 256 pixels, one after another, each in a process of its
own with one thread: ours in one pass ("streaming", also with intervals), at full precision, and
by the few thresholds of two protocols, so that it shows what their rules alone do;
scikit-learn, with the usual loop over 200 thresholds for AUPRO; anomalib's metrics; ADEval. Times
are of the processor. Peers are installed from PyPI into an environment of the benchmark's own in
the cache folder, which sees the packages of the present one, so torch and numpy are the same for
all. Where that is impossible, the rows say so.

Maps: made up (the speed is judged on these); the same with one hot pixel, and squeezed into a
narrow range; and of every class of real images with masks, where there are any, by the memory of
`scripts/bench memory`. Then memory from 1,000 to 20,000 images, and whether the streaming metrics
do what is asked of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._context import DATA_HELP, RESULTS, ROOT, describe, find_data, integers, markdown
from benchmarks._metric_maps import MADE, Images, made_maps, real_maps, write
from mambaadv2.data.index import mvtec_records
from mambaadv2.errors import DataError, MambaADv2Error
from mambaadv2.runlog import environment

OURS = (
    *("streaming", "streaming with intervals", "full precision"),
    *("rules of ader", "rules of dinomaly"),
)
PEERS = {
    "scikit-learn": "scikit-learn",
    "200 thresholds": "scikit-learn",
    "anomalib AUPRO": "anomalib==2.7.0",
    "anomalib others": "anomalib==2.7.0",
    "ADEval": "adeval==1.1.0",
}
VALUES = (
    *("image_auroc", "image_ap", "image_f1max"),
    *("pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_aupro"),
)
GROW = (1000, 2000, 5000, 10_000, 20_000)
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mambaadv2-bench"
SCRIPT = Path(__file__).with_name("_metric_contenders.py")

Row = dict[str, Any]


def install(cache: Path) -> dict[str, Path | str]:
    """By requirement, the interpreter of the environment that has it, or why there is none."""
    python = cache / "peers" / "bin" / "python"
    if not python.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", str(cache / "peers")], check=True)
        ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
        folder = _output([str(python), "-c", ask])
        # Both environments have one Python; what is not found in the peers' is found here.
        line = sysconfig.get_path("purelib") + "\n"
        Path(folder, "shared.pth").write_text(line, encoding="utf-8")
    found: dict[str, Path | str] = {}
    for requirement in dict.fromkeys(PEERS.values()):
        name, _, version = requirement.partition("==")
        ask = f"from importlib import metadata; print(metadata.version({name!r}))"
        there = subprocess.run(
            [str(python), "-c", ask], capture_output=True, text=True, check=False
        )
        if there.returncode == 0 and there.stdout.strip() == (version or there.stdout.strip()):
            found[requirement] = python
            continue
        print(f"installing {requirement} into {cache / 'peers'} ...", flush=True)
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--no-input", requirement],
            capture_output=True,
            text=True,
            check=False,
        )
        last = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        found[requirement] = python if done.returncode == 0 else f"not installed: {last}"
    return found


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def run(name: str, folder: Path, python: Path | str, *, grow: Sequence[int] = ()) -> Row:
    """What a contender's process says; {"absent": reason} where it cannot run."""
    if isinstance(python, str):
        return {"absent": python}
    # -P: the script's folder has a profile.py, which is not the one that torch wants.
    command = [str(python), "-P", str(SCRIPT), name, str(folder)]
    if grow:
        command += ["--grow", ",".join(map(str, grow))]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,  # not the repository: it must not be found by accident
        env={**os.environ, **ONE_THREAD},
    )
    if done.returncode:
        return {"absent": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
    row: Row = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def data_sets(images: int, data: Path | None) -> Iterator[tuple[str, Images]]:
    made = made_maps(images)
    yield "made", made
    for name, change in MADE.items():
        yield name, change(made)
    try:
        folder = find_data(data)
    except DataError as error:
        print(f"no real images: {error}", flush=True)
        return
    records = mvtec_records(folder, split="test")
    for name in dict.fromkeys(record.class_name for record in records):
        members = [record for record in records if record.class_name == name]
        if all(record.mask is not None for record in members if record.defect):
            yield name, real_maps(folder, name)


def speed_table(rows: Mapping[str, Row]) -> str:
    lines = [["CPU ms per image", "adding", "the rest", "together", "memory MB"]]
    for name, row in rows.items():
        if "absent" in row:
            lines.append([name, "-", "-", "-", row["absent"][:60]])
            continue
        together = row["ms_adding"] + row["ms_finishing"]
        times = (row["ms_adding"], row["ms_finishing"], together)
        lines.append([name, *(f"{time:.3f}" for time in times), f"{row['memory_mb']:.0f}"])
    return markdown(lines)


def value_table(rows: Mapping[str, Row]) -> str:
    """Every contender's values in percent, a dash where it has none."""
    heads = [name.replace("_", " ").replace("auroc", "AUROC") for name in VALUES]
    lines = [["percent", *heads]]
    for name, row in rows.items():
        values = row.get("values", {})
        if any(value in values for value in VALUES):
            cells = (f"{100 * values[v]:.4f}" if v in values else "-" for v in VALUES)
            lines.append([name, *cells])
    return markdown(lines)


def differences(rows: Mapping[str, Row]) -> float:
    """Largest difference between streaming and full precision, mIoU-max included."""
    stream, full = rows["streaming"]["values"], rows["full precision"]["values"]
    return max(abs(float(stream[name] - full[name])) for name in (*VALUES, "pixel_iou_max"))


def verdicts(found: Mapping[str, Mapping[str, Row]], memory: Row) -> list[str]:
    """What the streaming metrics are asked for, met or missed."""
    rows = found["made"]
    ours = rows["streaming"]["ms_adding"] + rows["streaming"]["ms_finishing"]
    lines = [_verdict("all metrics, CPU ms per image", ours, 2.0)]
    theirs = rows.get("anomalib AUPRO", {"absent": "not asked for"})
    if "absent" in theirs:
        lines.append(f"times faster than anomalib's AUPRO: not measured ({theirs['absent'][:60]})")
    else:
        ratio = (theirs["ms_adding"] + theirs["ms_finishing"]) / ours
        word = "met" if ratio >= 20 else "missed"
        lines.append(f"times faster than anomalib's AUPRO: {ratio:.1f}, at least 20: {word}")
    for name, row in memory.items():
        if "absent" not in row:
            most = row["memory"][-1]["memory_mb"]
            lines.append(_verdict(f"MB at {row['memory'][-1]['images']} images, {name}", most, 200))
    for name, rows in found.items():
        lines.append(_verdict(f"difference to full precision, {name}", differences(rows), 1e-4))
        bound = rows["streaming"]["values"]["bound"]
        lines.append(_verdict(f"bound of the difference, {name}", bound, 1e-4))
    return lines


def _verdict(what: str, measured: float, most: float) -> str:
    return f"{what}: {measured:.3g}, at most {most:g}: {'met' if measured <= most else 'missed'}"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    pythons: dict[str, Path | str] = {}
    if options.peers:
        pythons = install(options.cache)
    found: dict[str, dict[str, Row]] = {}
    memory: Row = {}
    with tempfile.TemporaryDirectory() as temporary:
        for label, images in data_sets(options.images, options.data):
            folder = Path(temporary, label)
            write(images, folder)
            rows = {name: run(name, folder, Path(sys.executable)) for name in OURS}
            if options.peers:
                rows |= {name: run(name, folder, pythons[need]) for name, need in PEERS.items()}
            found[label] = rows
            print(f"\n{label}: {len(images[0])} images of {images[0][0].shape}", flush=True)
            print(f"{speed_table(rows)}\n\n{value_table(rows)}", flush=True)
        folder = Path(temporary, "made")
        for name in OURS[:2]:
            memory[name] = run(name, folder, Path(sys.executable), grow=options.grow)
    return {"maps": found, "memory": memory}


def memory_table(memory: Row) -> str:
    counts = [row["images"] for row in next(iter(memory.values()))["memory"]]
    lines = [["MB above the start at", *(f"{count:,}" for count in counts)]]
    for name, row in memory.items():
        lines.append([name, *(f"{part['memory_mb']:.0f}" for part in row["memory"])])
    return markdown(lines)


def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench metrics", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, help=DATA_HELP)
    parser.add_argument("--images", type=int, default=200, help="made up (200)")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"for the peers ({CACHE})")
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--grow", type=integers, default=GROW, metavar="1000,20000")
    parser.add_argument("--out", type=Path, help="by default in benchmarks/results")
    options = parser.parse_args(arguments)
    processor = str(environment()["processor"]).lower().replace(" ", "-")
    out = options.out or RESULTS / f"metrics-{processor}.json"
    try:
        found = measure(options)
    except MambaADv2Error as error:
        print(f"scripts/bench metrics: {error}", file=sys.stderr)
        return 2
    print(f"\n{memory_table(found['memory'])}\n")
    found["verdicts"] = verdicts(found["maps"], found["memory"])
    print("\n".join(found["verdicts"]))
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {**describe("metrics", arguments), **found}
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"written: {out.relative_to(ROOT) if out.is_relative_to(ROOT) else out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
