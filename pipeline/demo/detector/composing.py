"""Training pictures for a detector: clip art, cut out by its alpha channel and pasted on generated backdrops.

After "Cut, Paste and Learn" (Dwibedi, Misra and Hebert, ICCV 2017): what is pasted is known to the pixel, so boxes cost
nobody's labour. A box is the extent of what can be seen of a cutout, not of what others hide.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipeline.errors import PairmillError

LEFT_OUT = {
    "special": "gradients, patterns and sleeves of discs: no kind of thing",
    "unsorted": "whatever the librarians found no place for",
}
MIN_PICTURES = 64
"""Fewer usable pictures make no class: buttons, containers, decorations, education, electronics, logos, science."""

HELD_OUT = 0.15  # the part of the pictures that is composed for validation only
CUTOUT_SIDE = 224  # pixels: cutouts are kept at most this long, as no composition shows them much larger
OPAQUE = 127  # a pixel shows a cutout where the alpha is above this
MIN_INK = 0.03  # the part of a cutout's extent that shows it: below, it is a hairline or an empty drawing
MIN_VISIBLE = 0.45  # of a cutout's pixels, after all that is pasted over it: below, nobody could say what it is
MIN_SIDE = 10  # pixels of a visible extent
MIN_CONTRAST = 14.0  # mean difference (of 255) to what was there before: a white thing on white teaches nothing
MOST_OBJECTS = 6


@dataclass(frozen=True)
class Cutout:
    """A picture without its surroundings. `pixels`: (h, w, 4) uint8, BGR premultiplied by alpha, and alpha."""

    name: str
    label: int
    held_out: bool
    pixels: np.ndarray


@dataclass(frozen=True)
class Composition:
    """`picture`: (size, size, 3) uint8 BGR. `boxes`: (n, 4) float32, x1 y1 x2 y2 in [0, 1]. `labels`: (n,) int64."""

    picture: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    """Of the cutouts, in the order of the boxes."""


def read_cutouts(png: Path, *, at_most: int | None = None) -> tuple[list[str], list[Cutout]]:
    """The classes (top-level folders, "_" as a space) and their cutouts, held-out ones among them.

    `at_most`: pictures a class, for a smaller run; a class then needs as many, and no more.

    Copies are held out together; drawings in one style (an icon in two colours, the cards of a deck) may fall on both
    sides. What is measured on held-out pictures is of pictures never seen, not of artists never seen.
    """
    if not png.is_dir():
        raise PairmillError(f"there is no folder {png}", "name the folder that the clip art was unpacked into")
    classes: list[str] = []
    cutouts: list[Cutout] = []
    for folder in sorted(path for path in png.iterdir() if path.is_dir() and path.name not in LEFT_OUT):
        seen: set[bytes] = set()
        found: list[Cutout] = []
        for path in sorted(folder.rglob("*.png"), key=lambda path: hashlib.sha256(path.name.encode()).digest()):
            content = path.read_bytes()
            digest = hashlib.sha256(content).digest()
            pixels = None if digest in seen else _cut_out(content)
            seen.add(digest)
            if pixels is not None:
                # By content, so that a copy in another folder is held out with it.
                held_out = int.from_bytes(digest[:4], "big") < HELD_OUT * 2**32
                found.append(Cutout(str(path.relative_to(png)), len(classes), held_out, pixels))
            if at_most and len(found) == at_most:
                break
        if len(found) >= (at_most or MIN_PICTURES) and len({cutout.held_out for cutout in found}) == 2:
            classes.append(folder.name.replace("_", " "))
            cutouts += found
    if not classes:
        raise PairmillError(f"no folder of {png} has enough pictures with a transparent ground", "is it Open Clip Art?")
    return classes, cutouts


def _cut_out(content: bytes) -> np.ndarray | None:
    """The drawing in a PNG's bytes, or None where it has no transparent ground or nothing that could be seen."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
    if pixels is None or pixels.ndim != 3 or pixels.shape[2] != 4 or pixels.dtype != np.uint8:
        return None
    shown = pixels[..., 3] > OPAQUE
    extent = _extent(shown)
    if extent is None or shown.all():
        return None
    left, top, right, bottom = extent
    if min(right - left, bottom - top) < MIN_SIDE or shown[top:bottom, left:right].mean() < MIN_INK:
        return None
    pixels = pixels[top:bottom, left:right]
    alpha = np.ascontiguousarray(pixels[..., 3])
    colours = cv2.multiply(np.ascontiguousarray(pixels[..., :3]), cv2.merge([alpha] * 3), scale=1 / 255)
    pixels = np.dstack([colours, alpha])
    return _resized(pixels, min(1.0, CUTOUT_SIDE / max(pixels.shape[:2])))


def compose(cutouts: Mapping[int, Sequence[Cutout]], backdrop: np.ndarray, random: np.random.Generator) -> Composition:
    """Paste 1..6 cutouts (by label) on `backdrop`, (size, size, 3) uint8 BGR, which is left as it is.

    A label is drawn with the square root of its cutouts' number, so that rare ones are met and common ones dominate
    less. A place where a cutout could not be seen, or would hide another, is drawn again a few times.
    """
    size = backdrop.shape[0]
    labels = sorted(cutouts)
    weights = np.sqrt([len(cutouts[label]) for label in labels])
    picture = backdrop.copy()
    owner = np.full((size, size), -1, np.int16)  # which pasted cutout a pixel shows
    pasted: list[tuple[Cutout, int]] = []  # with its number of pixels, hidden or not
    wanted = int(random.integers(1, MOST_OBJECTS + 1))
    for _ in range(4 * wanted):
        if len(pasted) == wanted:
            break
        among = cutouts[int(random.choice(labels, p=weights / weights.sum()))]
        cutout = among[int(random.integers(len(among)))]
        longest = size * (random.uniform(0.4, 1.0) if wanted == 1 else np.exp(random.uniform(*np.log([0.16, 0.62]))))
        pixels = _turned(cutout.pixels, longest, random)
        attempt = _paste(picture, owner, len(pasted), pixels, random)
        if attempt is None:
            continue
        trial, trial_owner, area = attempt
        areas = [*(area for _, area in pasted), area]
        visible = np.bincount(trial_owner[trial_owner >= 0].ravel(), minlength=len(areas))
        extents = [_extent(trial_owner == index) for index in range(len(areas))]
        if (visible >= MIN_VISIBLE * np.array(areas)).all() and all(
            extent is not None and min(extent[2] - extent[0], extent[3] - extent[1]) >= MIN_SIDE for extent in extents
        ):
            picture, owner = trial, trial_owner
            pasted.append((cutout, area))
    boxes = [_extent(owner == index) for index in range(len(pasted))]
    return Composition(
        picture,
        np.array(boxes, np.float32).reshape(-1, 4) / size,
        np.array([cutout.label for cutout, _ in pasted], np.int64),
        tuple(cutout.name for cutout, _ in pasted),
    )


def by_label(cutouts: Sequence[Cutout], held_out: bool) -> dict[int, list[Cutout]]:
    """The cutouts of one side, either those held out or those to train on, as `compose` takes them."""
    grouped: dict[int, list[Cutout]] = defaultdict(list)
    for cutout in cutouts:
        if cutout.held_out == held_out:
            grouped[cutout.label].append(cutout)
    return dict(grouped)


def _turned(pixels: np.ndarray, longest: float, random: np.random.Generator) -> np.ndarray:
    """Mirrored or not, scaled to a longest side in pixels, stretched and rotated a little."""
    if random.random() < 0.5:
        pixels = pixels[:, ::-1]
    pixels = _resized(pixels, longest / max(pixels.shape[:2]), float(np.exp(random.uniform(-0.15, 0.15))))
    if random.random() < 0.5:
        return pixels
    height, width = pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), random.uniform(-20, 20), 1.0)
    wide = int(np.ceil(height * abs(matrix[0, 1]) + width * abs(matrix[0, 0])))
    high = int(np.ceil(height * abs(matrix[0, 0]) + width * abs(matrix[0, 1])))
    matrix[:, 2] += (wide - width) / 2, (high - height) / 2
    return cv2.warpAffine(pixels, matrix, (wide, high), flags=cv2.INTER_LINEAR)


def _resized(pixels: np.ndarray, scale: float, stretch: float = 1.0) -> np.ndarray:
    height, width = pixels.shape[:2]
    shape = max(1, round(width * scale * stretch)), max(1, round(height * scale))
    if shape == (width, height):
        return np.ascontiguousarray(pixels)
    return cv2.resize(pixels, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _paste(
    picture: np.ndarray, owner: np.ndarray, index: int, pixels: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int] | None:
    """The picture and its owners with `pixels` at a random place, up to a sixth beyond an edge; and their number.

    None where they could hardly be told from what lies behind.
    """
    size = picture.shape[0]
    height, width = pixels.shape[:2]
    left, top = (round(random.uniform(-side / 6, size - side * 5 / 6)) for side in (width, height))
    rows = slice(max(0, top), min(size, top + height))
    columns = slice(max(0, left), min(size, left + width))
    inside = pixels[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    if not inside.size:
        return None
    shown = inside[..., 3] > OPAQUE
    behind = picture[rows, columns]
    clear = 255 - inside[..., 3:].astype(np.uint16)
    mixed = np.minimum(inside[..., :3] + (behind * clear + 127) // 255, 255).astype(np.uint8)
    if not shown.any() or cv2.absdiff(mixed, behind)[shown].mean() < MIN_CONTRAST:
        return None
    picture, owner = picture.copy(), owner.copy()
    picture[rows, columns] = mixed
    owner[rows, columns][shown] = index
    return picture, owner, int((pixels[..., 3] > OPAQUE).sum())


def _extent(shown: np.ndarray) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom (the latter two exclusive) of what is True."""
    columns, rows = np.flatnonzero(shown.any(0)), np.flatnonzero(shown.any(1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def backdrop(size: int, random: np.random.Generator) -> np.ndarray:
    """(size, size, 3) uint8: flat (often white), a gradient, blots, a pattern, or scribbles that are no class."""
    kinds: tuple[Callable[[int, np.random.Generator], np.ndarray], ...] = (_gradient, _blots, _pattern, _scribbles)
    choice = random.random()
    if choice < 0.25:
        return np.full((size, size, 3), 255, np.uint8)
    if choice < 0.4:
        return np.full((size, size, 3), random.integers(0, 256, 3), np.uint8)
    return kinds[int((choice - 0.4) / 0.6 * len(kinds))](size, random)


def _gradient(size: int, random: np.random.Generator) -> np.ndarray:
    across, down = np.meshgrid(*[np.linspace(-1, 1, size, dtype=np.float32)] * 2)
    angle = random.uniform(0, 2 * np.pi)
    ramp = across * np.cos(angle) + down * np.sin(angle)
    if random.random() < 0.3:
        ramp = np.hypot(across - random.uniform(-1, 1), down - random.uniform(-1, 1))
    ramp = (ramp - ramp.min()) / (ramp.max() - ramp.min())
    first, last = random.uniform(0, 255, (2, 3)).astype(np.float32)
    return (first + ramp[..., None] * (last - first)).astype(np.uint8)


def _blots(size: int, random: np.random.Generator) -> np.ndarray:
    """Smooth noise of two sizes: clouds, paper, grain."""
    ground = np.zeros((size, size, 3), np.float32) + random.uniform(40, 215, 3).astype(np.float32)
    for _ in range(2):
        cells = int(np.exp(random.uniform(np.log(2), np.log(size / 2))))
        channels = 3 if random.random() < 0.4 else 1
        noise = random.normal(0, random.uniform(5, 35), (cells, cells, channels)).astype(np.float32)
        ground += cv2.resize(noise, (size, size), interpolation=cv2.INTER_LINEAR).reshape(size, size, channels)
    return ground.clip(0, 255).astype(np.uint8)


def _pattern(size: int, random: np.random.Generator) -> np.ndarray:
    """Stripes, checks or dots in two colours."""
    across, down = np.meshgrid(np.arange(size), np.arange(size))
    period = int(random.integers(6, 48))
    angle = random.uniform(0, np.pi)
    along = (across * np.cos(angle) + down * np.sin(angle)) / period
    cross = (down * np.cos(angle) - across * np.sin(angle)) / period
    kind = random.integers(3)
    if kind == 0:
        mask = along % 1 < random.uniform(0.2, 0.6)
    elif kind == 1:
        mask = (np.floor(along) + np.floor(cross)) % 2 == 0
    else:
        mask = np.hypot(along % 1 - 0.5, cross % 1 - 0.5) < random.uniform(0.15, 0.4)
    first, last = random.integers(0, 256, (2, 3)).astype(np.uint8)
    return np.where(mask[..., None], first, last).astype(np.uint8)


def _scribbles(size: int, random: np.random.Generator) -> np.ndarray:
    """Ellipses, polygons and curves over another ground: things to look at that are nothing."""
    ground = np.ascontiguousarray(_blots(size, random) if random.random() < 0.5 else _gradient(size, random))
    for _ in range(int(random.integers(3, 14))):
        colour = [int(value) for value in random.integers(0, 256, 3)]
        thickness = -1 if random.random() < 0.5 else int(random.integers(1, 6))
        points = random.integers(0, size, (int(random.integers(3, 7)), 2)).astype(np.int32)
        kind = random.integers(3)
        if kind == 0:
            axes = [int(axis) for axis in random.integers(3, max(4, size // 4), 2)]
            centre = [int(place) for place in points[0]]
            cv2.ellipse(ground, centre, axes, random.uniform(0, 180), 0, 360, colour, thickness, cv2.LINE_AA)
        elif kind == 1 and thickness < 0:
            middle = points.mean(0, keepdims=True)
            cv2.fillPoly(ground, [(middle + (points - middle) * 0.4).astype(np.int32)], colour, cv2.LINE_AA)
        else:
            cv2.polylines(ground, [points], bool(kind == 1), colour, abs(thickness), cv2.LINE_AA)
    return ground
