"""A synthetic data set in MVTec AD's layout, to try, test and show things without any download.

Four classes: `fabric` and `wood` are textures, `gear` and `capsule` objects (a gear at any angle, a
capsule that barely moves). Normal images differ in light, colour, phase and pose. Every defect
image is drawn twice, with and without its defect, from the same random numbers; the mask is
exactly where the two differ. All of it is our own drawing.

Lengths are in image widths, x to the right and y down from the top left corner; colours are
linear in 0..1 until the camera turns them into 8 bits.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mambaadv2.errors import DataError
from mambaadv2.image import write_png

Plane = NDArray[np.float64]
"""(size, size), one number per pixel."""
Canvas = NDArray[np.float64]
"""(3, size, size) colours: planes are several times faster to mix than pixels."""
Colour = tuple[float, float, float]
Draw = Callable[[Generator, int, str, Generator], Canvas]
"""(normal randomness, size, defect type or "good", randomness of the defect) -> canvas."""

VISIBLE = 6
"""A pixel belongs to the mask when a channel changes by more than this, of 255."""


def generate(
    root: str | os.PathLike[str],
    *,
    seed: int = 0,
    size: int = 128,
    train: int = 32,
    good: int = 12,
    defect: int = 6,
) -> tuple[str, ...]:
    """Write the data set into `root`, which is created if need be, and return the class names.

    `size` is the side in pixels, at least 64; `train` and `good` count normal images per class for
    training and test, `defect` counts images per class and defect type. An image depends on
    `seed`, its class, type and number only, not on the counts.

    Raises `DataError` when a class folder is there already or a number is out of range.
    """
    root = Path(root)
    limits = {"seed": (seed, 0), "size": (size, 64), "train": (train, 1)}
    for name, (value, least) in (limits | {"good": (good, 0), "defect": (defect, 0)}).items():
        if value < least:
            raise DataError(f"{name}: expected at least {least}, got {value}")
    for name in CLASSES:
        if (root / name).exists():
            raise DataError(f"{root / name}: is there already; remove it or choose another folder")
    for class_number, (name, (draw, defects)) in enumerate(CLASSES.items()):
        for part, (kind, count) in enumerate(
            [("good", train), ("good", good), *((kind, defect) for kind in defects)]
        ):
            folder = root / name / ("train" if part == 0 else "test") / kind
            for index in range(count):
                image, mask = _pair(draw, (seed, class_number, part, index), size, kind)
                folder.mkdir(parents=True, exist_ok=True)
                write_png(folder / f"{index:03d}.png", image)
                if kind != "good":
                    truth = root / name / "ground_truth" / kind
                    truth.mkdir(parents=True, exist_ok=True)
                    write_png(truth / f"{index:03d}_mask.png", mask.astype(np.uint8) * 255)
    return tuple(CLASSES)


def _pair(
    draw: Draw, key: Sequence[int], size: int, kind: str
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """One image (size, size, 3) and its mask (size, size)."""

    def shot(kind: str) -> NDArray[np.uint8]:
        normal, flaw = (np.random.default_rng([*key, stream]) for stream in range(2))
        return _camera(draw(normal, size, kind, flaw), normal)

    image = shot(kind)
    if kind == "good":
        return image, np.zeros((size, size), np.bool_)
    change = np.abs(image.astype(np.int16) - shot("good")).max(axis=2)
    return image, change > VISIBLE


def _camera(canvas: Canvas, rng: Generator) -> NDArray[np.uint8]:
    """Uneven light, exposure, white balance and sensor noise; returns (size, size, 3)."""
    x, y = _grid(canvas.shape[1])
    slope = rng.uniform(-0.12, 0.12, 2)
    light = rng.uniform(0.93, 1.07) * (1 + slope[0] * (x - 0.5) + slope[1] * (y - 0.5))
    white = 1 + rng.uniform(-0.015, 0.015, (3, 1, 1))
    noise = rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(0.011)
    exposed = canvas * (255 * light) * white
    exposed += 255 * noise
    pixels = np.rint(np.clip(exposed, 0, 255, out=exposed)).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _grid(size: int) -> tuple[Plane, Plane]:
    """x as (1, size) and y as (size, 1) of the pixel centres."""
    centres = (np.arange(size) + 0.5) / size
    return centres[None, :], centres[:, None]


def _noise(rng: Generator, size: int, cells: tuple[float, float]) -> Plane:
    """Smooth noise of unit variance with about `cells` (down, across) bumps per image."""
    down, across = cells
    grid = rng.standard_normal((int(down) + 5, int(across) + 5))
    return _spread(_spread(grid, size, down).T, size, across).T


def _spread(knots: Plane, size: int, cells: float) -> Plane:
    """Cubic B-spline through rows of random `knots`, (size, columns), variance kept.

    Written out rather than as a matrix product, which would start BLAS threads for a trifle.
    """
    at = (np.arange(size) + 0.5) / size * cells
    first = at.astype(int)
    t = at - first
    weights = np.array([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 1 + 3 * t * (1 + t - t**2), t**3])
    weights /= np.sqrt((weights**2).sum(axis=0))
    spread: Plane = sum(weights[tap][:, None] * knots[first + tap] for tap in range(4))
    return spread


def _cover(distance: Plane, size: int, softness: float = 0.0) -> Plane:
    """Signed distance (negative inside) -> opacity, over one pixel or over `softness`."""
    width = max(1 / size, softness)
    return np.clip(0.5 - distance / width, 0, 1)


def _colour(red: float, green: float, blue: float) -> Canvas:
    """One colour as (3, 1, 1), to be spread over a canvas."""
    return np.array((red, green, blue))[:, None, None]


def _paint(canvas: Canvas, colour: Colour | Canvas, opacity: Plane) -> Canvas:
    over = _colour(*colour) if isinstance(colour, tuple) else colour
    return canvas + opacity * (over - canvas)


def _blob(rng: Generator, x: Plane, y: Plane, radius: float, rough: float = 0.25) -> Plane:
    """Signed distance, roughly, to an irregular closed shape around the origin of x and y."""
    angle = np.arctan2(y, x)
    edge = np.ones_like(angle)
    for wave in range(2, 7):
        edge += rough / wave * rng.standard_normal() * np.cos(wave * angle + rng.uniform(0, 6.3))
    stretch = rng.uniform(0.75, 1.0)
    return np.hypot(x, y / stretch) - radius * np.maximum(edge, 0.3)


def _stroke(x: Plane, y: Plane, points: NDArray[np.float64]) -> Plane:
    """Distance to the line through (N, 2) points."""
    squares = []
    for (ax, ay), (bx, by) in itertools.pairwise(points):
        dx, dy = bx - ax, by - ay
        scale = 1 / (dx * dx + dy * dy)
        along = np.clip((x - ax) * (dx * scale) + (y - ay) * (dy * scale), 0, 1)
        squares.append((x - ax - dx * along) ** 2 + (y - ay - dy * along) ** 2)
    nearest: Plane = np.sqrt(np.minimum.reduce(squares))
    return nearest


def _walk(
    rng: Generator, start: tuple[float, float], angle: float, length: float, bend: float
) -> NDArray[np.float64]:
    """(9, 2) points of a wandering line; `bend` in radians per step."""
    angles = angle + np.cumsum(rng.normal(0, bend, 8))
    steps = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (length / 8)
    return np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)]) + start


def _turn(x: Plane, y: Plane, angle: float) -> tuple[Plane, Plane]:
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


_INK: Colour = (0.10, 0.08, 0.07)


def _fabric(rng: Generator, size: int, kind: str, flaw: Generator) -> Canvas:
    """A blue and beige twill."""
    x, y = _grid(size)
    threads = 20.0
    across, down = _turn(x - 0.5, y - 0.5, rng.uniform(-0.03, 0.03))
    wander = 0.12 * _noise(rng, size, (3, 3))
    a = across * threads + rng.uniform(0, 8) + 16 + wander
    b = down * threads + rng.uniform(0, 8) + 16 + 0.12 * _noise(rng, size, (3, 3))
    column, row = np.floor(a).astype(int), np.floor(b).astype(int)
    gains = 1 + rng.normal(0, 0.05, (2, 64))
    round_a, round_b = (1 - 2.6 * (value - np.floor(value) - 0.5) ** 2 for value in (a, b))
    warp = _colour(0.24, 0.35, 0.50) * (round_a * gains[0][column % 64])
    weft = _colour(0.80, 0.76, 0.66) * (round_b * gains[1][row % 64])
    canvas: Canvas = np.where((((column - row) % 4) < 2), warp, weft)
    canvas *= 1 + 0.03 * _noise(rng, size, (48, 48))

    px, py = (value - flaw.uniform(0.15, 0.85) for value in (x, y))
    if kind == "hole":
        shape = _blob(flaw, px, py, flaw.uniform(0.045, 0.085), 0.3)
        canvas = _paint(canvas, _INK, 0.55 * _cover(shape - 0.012, size, 0.025))
        canvas = _paint(canvas, (0.05, 0.04, 0.05), _cover(shape, size))
        around = np.arctan2(py, px)
        frays = np.cos(14 * around + 3 * np.sin(2 * around + flaw.uniform(0, 6)))
        ends = np.clip(3 * frays - 1.5, 0, 1) * _cover(np.abs(shape + 0.008) - 0.014, size, 0.008)
        canvas = _paint(canvas, (0.72, 0.68, 0.60), ends)
    elif kind == "stain":
        shape = _blob(flaw, px, py, flaw.uniform(0.08, 0.13))
        opacity = flaw.uniform(0.6, 0.85) * _cover(shape, size, 0.02)
        canvas = _paint(canvas, (0.33, 0.19, 0.08), opacity)
    elif kind == "thread":
        start = (flaw.uniform(0.1, 0.5), flaw.uniform(0.15, 0.85))
        line = _stroke(x, y, _walk(flaw, start, flaw.uniform(-0.5, 0.5), 0.4, 0.2))
        width = 0.45 / threads
        canvas = _paint(canvas, _INK, 0.5 * _cover(line - 1.4 * width, size, 0.02))
        shade = 1 - 0.6 * np.minimum(line / width, 1) ** 2
        canvas = _paint(canvas, shade * _colour(0.78, 0.42, 0.24), _cover(line - width, size))
    return canvas


def _wood(rng: Generator, size: int, kind: str, flaw: Generator) -> Canvas:
    """A planed board; the rings are cut at a shallow angle."""
    x, y = _grid(size)
    heart = (rng.uniform(-0.2, 1.2), rng.uniform(-0.5, 1.5))
    rings = 9 * np.hypot(x - heart[0], 0.16 * (y - heart[1])) + 0.16 * _noise(rng, size, (2, 4))
    phase = rings + rng.uniform(0, 8)
    part = phase - np.floor(phase)
    late = part**2.5 * np.clip((1 - part) * 9, 0, 1)
    late *= rng.uniform(0.55, 1.0, 64)[np.floor(phase).astype(int) % 64]
    canvas = _paint(_colour(0.80, 0.62, 0.42), (0.50, 0.31, 0.17), late)
    fibres = 0.05 * _noise(rng, size, (9, size / 1.6))
    pores = np.clip(_noise(rng, size, (14, size / 2)) - 1.7, 0, 1)
    canvas *= 1 + fibres + 0.05 * _noise(rng, size, (2, 3)) - 0.35 * pores

    px, py = (value - flaw.uniform(0.15, 0.85) for value in (x, y))
    if kind == "hole":
        shape = np.hypot(px, py) - flaw.uniform(0.022, 0.045)
        canvas = _paint(canvas, (0.42, 0.27, 0.16), 0.7 * _cover(shape - 0.012, size, 0.014))
        canvas = _paint(canvas, (0.10, 0.07, 0.05), _cover(shape, size))
        canvas = _paint(canvas, (0.24, 0.16, 0.10), _cover(np.hypot(px, py - 0.014) - 0.018, size))
    elif kind == "liquid":
        shape = _blob(flaw, px, py, flaw.uniform(0.08, 0.15))
        depth = flaw.uniform(0.2, 0.38) * _cover(shape, size, 0.012)
        depth *= 1 + 0.5 * np.exp(-((shape / 0.02) ** 2))
        canvas = canvas * (1 - depth * _colour(0.7, 0.85, 1.0))
    elif kind == "scratch":
        start = (flaw.uniform(0.15, 0.4), flaw.uniform(0.2, 0.8))
        path = _walk(flaw, start, flaw.uniform(-0.9, 0.9), flaw.uniform(0.3, 0.55), 0.06)
        width = flaw.uniform(0.004, 0.007)
        canvas = _paint(canvas, _INK, 0.6 * _cover(_stroke(x, y - width, path) - width, size))
        canvas = _paint(
            canvas, (0.93, 0.83, 0.66), 0.85 * _cover(_stroke(x, y, path) - width, size)
        )
    return canvas


def _gear(rng: Generator, size: int, kind: str, flaw: Generator) -> Canvas:
    """A steel gear at any angle on a dark mat."""
    x, y = _grid(size)
    px, py = (value - 0.5 - rng.uniform(-0.015, 0.015) for value in (x, y))
    pose = rng.uniform(0, 2 * np.pi)
    radius, seen = np.hypot(px, py), np.arctan2(py, px)
    angle = seen - pose
    teeth, root, height = 12, 0.325, 0.085
    cut: Plane = np.zeros_like(angle)
    if kind == "missing_tooth":
        centre = flaw.integers(teeth) * 2 * np.pi / teeth
        off = np.abs((angle - centre + np.pi) % (2 * np.pi) - np.pi)
        cut[off < np.pi / teeth] = flaw.uniform(0.65, 1.0)
    flank = 0.5 + 1.5 * np.cos(teeth * angle)
    # Divided by its slope along a flank, so that every edge is as sharp as the others.
    rising = (flank > 0) & (flank < 1) & (radius > root)
    rise = np.where(rising, 1.5 * teeth * height * (1 - cut), 0)
    slope = np.hypot(1, rise * np.sin(teeth * angle) / np.maximum(radius, root))
    rim = (radius - root - height * np.clip(flank, 0, 1) * (1 - cut)) / slope
    hole_angle = (angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5
    holes = np.hypot(radius * np.cos(hole_angle) - 0.185, radius * np.sin(hole_angle)) - 0.042
    across, along = _turn(px, py, pose)
    key = np.maximum(np.abs(along) - 0.018, np.abs(across - 0.06) - 0.03)
    solid = np.maximum(rim, -np.minimum(np.minimum(radius - 0.062, key), holes))

    mat = _colour(0.17, 0.18, 0.20) * (1 + 0.04 * _noise(rng, size, (40, 40)))
    shadow = np.hypot(px - 0.012, py - 0.02) - root - 0.5 * height
    mat = mat * (1 - 0.6 * _cover(shadow, size, 0.06))
    grooves = np.interp(np.arange(1024), np.arange(0, 1024, 6.4), rng.normal(0, 0.02, 160))
    lathe = grooves[(radius * 1365).astype(int)]
    face = 0.60 + 0.13 * np.cos(2 * (seen - 0.9)) + lathe
    face -= 0.14 * _cover(np.abs(radius - 0.19) - 0.075, size, 0.012)
    bevel = np.exp(-(((solid + 0.008) / 0.006) ** 2))
    face += 0.16 * bevel * np.cos(seen + 2.3)
    steel: Canvas = face * _colour(0.98, 1.0, 1.04)

    # On the steel between two holes.
    at = pose + (flaw.integers(5) + flaw.uniform(0.35, 0.65)) * 2 * np.pi / 5
    far = flaw.uniform(0.12, 0.30)
    spot = (far * np.cos(at), far * np.sin(at))
    if kind == "rust":
        shape = _blob(flaw, px - spot[0], py - spot[1], flaw.uniform(0.03, 0.065), 0.4)
        opacity = flaw.uniform(0.5, 0.9) * _cover(shape, size, 0.02)
        steel = _paint(steel, (0.45, 0.24, 0.11), opacity)
    elif kind == "scratch":
        line = _stroke(px, py, _walk(flaw, spot, at + 2.0, flaw.uniform(0.24, 0.4), 0.08))
        steel = _paint(steel, _INK, 0.5 * _cover(line - 0.012, size, 0.006))
        steel = _paint(steel, (1.0, 1.0, 1.0), flaw.uniform(0.6, 0.9) * _cover(line - 0.007, size))
    return _paint(mat, steel, _cover(solid, size))


# Rows of 5 x 7 letters, one text row per line.
_PRINT = (
    ".###..####...###.",
    "#...#.#...#.#...#",
    "#...#.#...#.....#",
    "#####.#...#...##.",
    "#...#.#...#..#...",
    "#...#.#...#.#....",
    "#...#.####..#####",
)


def _letters(x: Plane, y: Plane, keep: Sequence[bool]) -> Plane:
    """Opacity of the printed "AD2", 0.29 wide around the origin; `keep` says which letters."""
    rows = [[0.0, *(float(mark == "#") for mark in row), 0.0] for row in _PRINT]
    ink = np.pad(np.array(rows), ((1, 1), (0, 0)))
    for letter, kept in enumerate(keep):
        ink[:, 1 + 6 * letter : 6 + 6 * letter] *= kept
    pitch = 0.29 / 17
    across = np.clip(x / pitch + 9, 0, 17.999)
    down = np.clip(y / pitch + 4, 0, 7.999)
    column, row = across.astype(int), down.astype(int)
    fx, fy = across - column, down - row
    upper = ink[row, column] * (1 - fx) + ink[row, column + 1] * fx
    lower = ink[row + 1, column] * (1 - fx) + ink[row + 1, column + 1] * fx
    opacity: Plane = np.clip((upper * (1 - fy) + lower * fy - 0.3) * 2.5, 0, 1)
    return opacity


def _capsule(rng: Generator, size: int, kind: str, flaw: Generator) -> Canvas:
    """A printed two-coloured capsule that always lies nearly the same way."""
    x, y = _grid(size)
    px, py = (value - 0.5 - rng.uniform(-0.012, 0.012) for value in (x, y))
    px, py = _turn(px, py, rng.uniform(-0.035, 0.035))
    half, thick = 0.22, 0.165
    reach = np.hypot(np.maximum(np.abs(px) - half, 0), py)
    body = reach - np.where(px < 0.0, thick, thick - 0.006)

    ribs = np.maximum(np.cos(16 * np.pi * (x + rng.uniform(0, 1))), 0.8) - 0.8
    belt = _colour(0.80, 0.82, 0.81) * (1 - 0.5 * ribs + 0.012 * _noise(rng, size, (30, 30)))
    shadow = np.hypot(np.maximum(np.abs(px - 0.01) - half, 0), py - 0.03) - thick
    belt *= 1 - 0.5 * _cover(shadow, size, 0.08)
    teal = _colour(0.10, 0.42, 0.50) * (1 + rng.normal(0, 0.02, (3, 1, 1)))
    shell = _paint(_colour(0.90, 0.87, 0.78), teal, _cover(px, size))
    shell *= 1 - 0.35 * np.exp(-(((px - 0.004) / 0.006) ** 2))

    keep, shift, slant = [True] * 3, (0.0, 0.0), 0.0
    if kind == "misprint":
        fault = flaw.integers(3)
        if fault == 0:
            keep[flaw.integers(3)] = False
        elif fault == 1:
            shift = (flaw.uniform(-0.03, 0.03), flaw.choice([-1, 1]) * flaw.uniform(0.025, 0.05))
        else:
            slant = flaw.choice([-1, 1]) * flaw.uniform(0.25, 0.45)
    tx, ty = _turn(px - 0.165 - shift[0], py - shift[1], slant)
    shell = _paint(shell, (0.16, 0.17, 0.28), 0.8 * _letters(tx, ty, keep))

    if kind == "crack":
        start = (flaw.uniform(-0.25, 0.25), flaw.uniform(-0.16, -0.10))
        line = _stroke(px, py, _walk(flaw, start, np.pi / 2, flaw.uniform(0.14, 0.26), 0.5))
        shell = _paint(shell, (0.98, 0.97, 0.95), 0.4 * _cover(line - 0.014, size, 0.01))
        shell = _paint(shell, _INK, 0.9 * _cover(line - 0.007, size))
    elif kind == "spots":
        for _ in range(flaw.integers(2, 5)):
            sx, sy = flaw.uniform(-0.28, 0.28), flaw.uniform(-0.1, 0.1)
            shape = _blob(flaw, px - sx, py - sy, flaw.uniform(0.02, 0.036))
            shell = _paint(shell, (0.33, 0.20, 0.10), flaw.uniform(0.6, 0.95) * _cover(shape, size))

    up = np.sqrt(np.clip(1 - (reach / thick) ** 2, 0, 1))
    shine = np.exp(-(((py + 0.075) / 0.022) ** 2)) * _cover(np.abs(px) - half, size, 0.12)
    lit = shell * (0.52 + 0.48 * up) + 0.32 * shine
    return _paint(belt, lit, _cover(body, size))


CLASSES: dict[str, tuple[Draw, tuple[str, ...]]] = {
    "capsule": (_capsule, ("crack", "misprint", "spots")),
    "fabric": (_fabric, ("hole", "stain", "thread")),
    "gear": (_gear, ("missing_tooth", "rust", "scratch")),
    "wood": (_wood, ("hole", "liquid", "scratch")),
}
"""Class name -> how to draw it, and its defect types."""
