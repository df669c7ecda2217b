"""Data sets that have a name: the built-in shapes and Fashion-MNIST.

The one idea: every data set is a list of labels, a function from indices to uint8 pictures, and a
fingerprint that changes when anything in it changes. `ids.py` encodes it once.
"""

import gzip
import hashlib
import math
import os
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from .. import UserError
from .files import regular


class Pictures:
    """Pictures in memory. (`folders.FolderPictures` reads its pictures when they are needed.)"""

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: Sequence[str],
                 fingerprint: str):
        self.images, self.labels, self.classes = images, labels.astype(np.int64), list(classes)
        self.fingerprint = fingerprint
        self.side = images.shape[1] if images.ndim == 4 else 0      # pixels
        self.bad: dict[str, str] = {}           # name -> why it can't be used
        self.left_out: dict[str, str] = {}      # the same of what is not in the list

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"picture {index}"

    def load(self, indices: Sequence[int], side: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The usable ones of `indices`, and their pictures, (n, side, side, 3) uint8. A source with
        pictures of any size returns them with `side` pixels per side, if given."""
        indices = np.asarray(indices)
        return indices, self.images[indices]


# The built-in shapes: windows onto endless patterns of one shape. They are endless because ARPG
# knows only how far apart tokens are (see `attention.rotary_table`). It could only guess the first
# tokens of a single shape in the middle, since it does not know where the middle is.
# Each shape is a list of polygons around (0, 0), with a radius of about 1, filled (1) or cut out
# (0); y points down.

SIDE, PERIOD, CELL, SUPERSAMPLE = 24, 16, 4, 8   # pixels; the window moves by whole cells
RADIUS, JITTER_SIZE = 7.7, 0.02             # pixels, and by which share at most it is smaller
JITTER_PLACE, JITTER_ANGLE = 0.2, math.radians(2)   # pixels and radians, in either direction

Points = list[tuple[float, float]]


def _arc(start: float, end: float, radius: float = 1.0, points: int = 24) -> Points:
    angles = [math.radians(start + (end - start) * i / points) for i in range(points + 1)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _cross(half: float, length: float = 1.0, turn: float = 0.0) -> Points:
    corners = [(half, -length), (half, -half), (length, -half)]
    turns = [turn + quarter * math.pi / 2 for quarter in range(4)]
    return [(math.cos(a) * x - math.sin(a) * y, math.sin(a) * x + math.cos(a) * y)
            for a in turns for x, y in corners]


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


SHAPES = {
    "circle": [(_arc(0, 360, 0.72), 1)],
    "ring": [(_arc(0, 360), 1), (_arc(0, 360, 0.55), 0)],
    "triangle": [([(0, -1), (1, 0.9), (-1, 0.9)], 1)],
    "square": [(_box(-0.97, -0.97, 0.97, 0.97), 1)],
    "bar": [(_box(-1, -0.36, 1, 0.36), 1)],
    "pole": [(_box(-0.36, -1, 0.36, 1), 1)],
    "cross": [(_cross(0.3), 1)],
    "saltire": [(_cross(0.375, 1.25, math.pi / 4), 1)],
    "corner": [([(-1, -1), (-0.3, -1), (-0.3, 0.3), (1, 0.3), (1, 1), (-1, 1)], 1)],
    "half disc": [(_arc(0, 180), 1)],
}
COLOURS = np.array([(230, 50, 50), (250, 200, 40), (50, 180, 75), (70, 200, 240), (50, 80, 220),
                    (210, 60, 200)], np.float32)
GROUNDS = np.array([(24, 24, 28), (236, 236, 230)], np.float32)


def draw_shape(seed: int, index: int) -> tuple[np.ndarray, int]:
    """Picture (SIDE, SIDE, 3) uint8 and class number `index` of the endless set `seed`."""
    rng = np.random.default_rng([seed, index])
    label, colour, ground = (int(rng.integers(len(k))) for k in (SHAPES, COLOURS, GROUNDS))
    jitter_x, jitter_y, jitter_size, jitter_angle = rng.uniform(-1, 1, 4)
    radius = RADIUS * (1 - JITTER_SIZE + JITTER_SIZE * jitter_size)
    column, row = CELL * rng.integers(PERIOD // CELL, size=2)
    x0, y0 = column + JITTER_PLACE * jitter_x, row + JITTER_PLACE * jitter_y
    cos, sin = math.cos(jitter_angle * JITTER_ANGLE), math.sin(jitter_angle * JITTER_ANGLE)
    mask = Image.new("L", (SIDE * SUPERSAMPLE, SIDE * SUPERSAMPLE))
    canvas = ImageDraw.Draw(mask)
    for polygon, fill in list(SHAPES.values())[label]:
        turned = [(x * cos - y * sin, x * sin + y * cos) for x, y in polygon]
        corners = [(x0 + radius * x, y0 + radius * y) for x, y in turned]
        for right in range(-PERIOD, SIDE + PERIOD, PERIOD):
            for down in range(-PERIOD, SIDE + PERIOD, PERIOD):
                canvas.polygon([(SUPERSAMPLE * (x + right) - 0.5, SUPERSAMPLE * (y + down) - 0.5)
                                for x, y in corners], fill=255 * fill)
    alpha = np.asarray(mask.reduce(SUPERSAMPLE), np.float32)[..., None] / 255
    return (COLOURS[colour] * alpha + GROUNDS[ground] * (1 - alpha) + 0.5).astype(np.uint8), label


def shapes(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` pictures of the endless set `seed`, uint8 (count, side, side, 3), and their
    classes, int64 (count,). Picture i depends on (seed, i) only. Class, colour (of six) and ground
    (of two) are independent."""
    drawn = [draw_shape(seed, i) for i in tqdm(range(count), "draw shapes", disable=count < 20_000)]
    images = np.array([image for image, _ in drawn], np.uint8).reshape(count, SIDE, SIDE, 3)
    return images, np.array([label for _, label in drawn], np.int64)


def shapes_pictures(count: int, seed: int) -> Pictures:
    return Pictures(*shapes(count, seed), list(SHAPES), f"shapes 2 {count} {seed}")


# Fashion-MNIST. The checksums are those of the unpacked files, because packing may differ.

FASHION_CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker",
                   "bag", "ankle boot")
FASHION_FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
LARGEST = 16 + 60_000 * 28 * 28                # bytes of the largest of them
FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
FASHION_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"), CACHE / "arpg_mini/fashion-mnist")


def read_idx(path: Path, sha256: str) -> np.ndarray:
    """The uint8 array in an IDX file, gzipped or not. UserError if its checksum is wrong."""
    try:
        packed = open(regular(path), "rb").read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, EOFError, gzip.zlib.error) as error:
        raise UserError(f"{path}: can't be read ({error}); delete it and run again") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{path}: not the Fashion-MNIST file of that name (checksum differs); "
                        "delete it and run again")
    sizes = np.frombuffer(data, ">i4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(sizes)


def find_fashion(folder: Path | None = None, url: str = FASHION_URL,
                 folders: Sequence[Path] = FASHION_FOLDERS) -> Path:
    """The folder with the four files: the given one, or else the first of `folders` that has them.
    If none has them, they are downloaded into the last one."""
    def complete(path: Path) -> bool:
        return all((path / f"{name}.gz").exists() or (path / name).exists()
                   for name in FASHION_FILES)

    for candidate in [folder] if folder else folders:
        if complete(candidate):
            return candidate
    if folder:
        raise UserError(f"{folder}: lacks one of {', '.join(FASHION_FILES)} (.gz or not)")
    target = folders[-1]
    for name, sha256 in FASHION_FILES.items():
        part = target / f"{name}.part"
        try:
            target.mkdir(parents=True, exist_ok=True)
            with urllib.request.urlopen(f"{url}{name}.gz", timeout=60) as source:
                total = int(source.headers.get("Content-Length", 0))
                with open(part, "wb") as sink, tqdm(desc=name, total=total, unit="B") as bar:
                    while block := source.read(1 << 20):
                        bar.update(sink.write(block))
            read_idx(part, sha256)
        except OSError as error:
            raise UserError(f"{url}{name}.gz: download failed ({error}); put the four files into "
                            f"{target} by hand") from None
        part.replace(target / f"{name}.gz")
    return target


def fashion_pictures(split: str, folder: Path | None = None) -> Pictures:
    """The 60,000 pictures of "train" or the 10,000 of "t10k", 28×28, grey."""
    root, arrays = find_fashion(folder), []
    for name in (f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"):
        packed = root / f"{name}.gz"
        arrays.append(read_idx(packed if packed.exists() else root / name, FASHION_FILES[name]))
    images = np.repeat(arrays[0][..., None], 3, axis=-1)                           # (n, 28, 28, 3)
    return Pictures(images, arrays[1], FASHION_CLASSES, f"fashion-mnist {split}")
