"""Pictures to learn from: the built-in shapes, Fashion-MNIST, and folders of class folders.

The one idea: whatever the source, a data set is a list of labels and a function from indices to
uint8 pictures, with a fingerprint that changes when anything in it does. Encoded once by a
tokenizer it becomes files of ids (`ids.py`), which is all that ARPG ever reads.
"""

import gzip
import hashlib
import math
import os
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from tqdm import tqdm

from .config import UserError


class Pictures:
    """Pictures held in memory. `FolderPictures` reads them when asked."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: Sequence[str],
                 fingerprint: str):
        self.images, self.labels, self.classes = images, labels.astype(np.int64), list(classes)
        self.fingerprint = fingerprint
        self.bad: dict[str, str] = {}           # name -> why it can't be used

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"picture {index}"

    def load(self, indices: Sequence[int], side: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The usable ones of `indices`, and their pictures, (n, side, side, 3) uint8.

        `side` asks for another size than usual, of pictures that come in any.
        """
        indices = np.asarray(indices)
        return indices, self.images[indices]


# The built-in shapes: a window onto an endless pattern of one shape. Endless, because ARPG knows
# only how far apart tokens are (see `attention.rotary_table`): of a lone shape that must stand in
# the middle it would have to guess the first tokens, not knowing where the middle is.
# Each shape is polygons around (0, 0), about 1 in radius, filled (1) or cut out (0); y runs down.

SIDE, PERIOD, CELL, SUPERSAMPLE = 24, 16, 4, 8   # pixels; the window moves by whole cells
RADIUS, JITTER_SIZE = 7.7, 0.02             # pixels; and the share it varies by, down from RADIUS
JITTER_PLACE, JITTER_ANGLE = 0.2, math.radians(2)   # pixels and radians, either way

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
    """The first `count` of the endless set `seed`: uint8 (count, side, side, 3), int64 (count,).

    Ten classes in six colours on two grounds, independent; picture i depends on (seed, i) alone.
    """
    drawn = [draw_shape(seed, i) for i in tqdm(range(count), "draw shapes", disable=count < 20_000)]
    images = np.array([image for image, _ in drawn], np.uint8).reshape(count, SIDE, SIDE, 3)
    return images, np.array([label for _, label in drawn], np.int64)


def shapes_pictures(count: int, seed: int) -> Pictures:
    return Pictures(*shapes(count, seed), list(SHAPES), f"shapes 2 {count} {seed}")


# Fashion-MNIST. The checksums are of the unpacked files: repacking changes the others.

FASHION_CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker",
                   "bag", "ankle boot")
FASHION_FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
FASHION_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"), CACHE / "arpg_mini/fashion-mnist")


def read_idx(path: Path, sha256: str) -> np.ndarray:
    """The uint8 array in an IDX file, gzipped or not. UserError if it isn't the known one."""
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, gzip.zlib.error) as error:
        raise UserError(f"{path}: can't be read ({error}); delete it and run again") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{path}: not the Fashion-MNIST file of that name (checksum differs); "
                        "delete it and run again")
    sizes = np.frombuffer(data, ">i4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(sizes)


def find_fashion(folder: Path | None = None, url: str = FASHION_URL,
                 folders: Sequence[Path] = FASHION_FOLDERS) -> Path:
    """The folder with the four files: the one given, the first known, or the last, filled."""
    def complete(path: Path) -> bool:
        return all((path / f"{name}.gz").exists() or (path / name).exists()
                   for name in FASHION_FILES)

    for candidate in [folder] if folder else folders:
        if complete(candidate):
            return candidate
    if folder:
        raise UserError(f"{folder}: lacks one of {', '.join(FASHION_FILES)} (.gz or not)")
    target = folders[-1]
    target.mkdir(parents=True, exist_ok=True)
    for name, sha256 in FASHION_FILES.items():
        part = target / f"{name}.part"
        try:
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
    """The real set: "train" 60,000 or "t10k" 10,000 pictures, 28×28 grey."""
    root, arrays = find_fashion(folder), []
    for name in (f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"):
        packed = root / f"{name}.gz"
        arrays.append(read_idx(packed if packed.exists() else root / name, FASHION_FILES[name]))
    images = np.repeat(arrays[0][..., None], 3, axis=-1)                           # (n, 28, 28, 3)
    return Pictures(images, arrays[1], FASHION_CLASSES, f"fashion-mnist {split}")


# Folders of class folders.

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def plain_picture(image: Image.Image) -> Image.Image:
    """Any picture -> RGB: turned by its EXIF mark, flattened onto white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":          # 16 bits or more a pixel
        deep = np.asarray(image, np.float32)
        top = 65535 if image.mode.startswith("I") else max(float(deep.max()), 1e-9)
        image = Image.fromarray((deep / top * 255).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def fit_picture(image: Image.Image, side: int) -> np.ndarray:
    """Any picture -> (side, side, 3) uint8: plain, scaled so that the shorter side fits, and cut
    from the centre (as in ADM's preprocessing: halve by boxes while twice too large, then one
    bicubic step)."""
    image = plain_picture(image)
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    width, height = (max(side, round(s * scale)) for s in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    # Only what is kept gets scaled: a strip of one pixel's width would grow to millions of rows.
    box = (left / scale, top / scale, min(image.width, (left + side) / scale),
           min(image.height, (top + side) / scale))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=box))


class FileSource(Pictures):
    """Items in files below `root`, read when asked; what can't be read is named in `bad`."""

    def __init__(self, files: "Listing", root: Path, labels: Sequence[int],
                 classes: Sequence[str], kind: str):
        self.files, self.root = [f.path for f in files], root
        digest = hashlib.sha256(kind.encode())
        for f, label in zip(files, labels):
            digest.update(os.fsencode(f"\n{f.path} {label} {f.size} {f.changed}"))
        super().__init__(np.empty(0), np.array(labels, np.int64), classes, digest.hexdigest())

    def name(self, index: int) -> str:
        return str(self.root / self.files[index])

    def read(self, path: Path, side: int) -> np.ndarray:
        raise NotImplementedError

    def load_one(self, index: int, side: int) -> np.ndarray | None:
        try:
            return self.read(self.root / self.files[index], side)
        except Exception as error:  # a codec may raise anything; one bad file must not end a run
            self.bad[self.name(index)] = f"{type(error).__name__}: {error}"
            return None

    def load(self, indices: Sequence[int], side: int = 0) -> tuple[np.ndarray, np.ndarray]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            items = list(pool.map(lambda index: self.load_one(index, side), indices))
        kept = [i for i, item in zip(indices, items) if item is not None]
        good = [item for item in items if item is not None]
        return np.asarray(kept, np.int64), np.array(good) if good else np.empty(0, np.uint8)


class FolderPictures(FileSource):
    """Pictures in `root/CLASS/…`."""

    def __init__(self, files: "Listing", root: Path, classes: Sequence[str], side: int):
        self.side = side
        super().__init__(files, root, [f.label for f in files], classes, f"folder 1 {side}")

    def read(self, path: Path, side: int) -> np.ndarray:
        with Image.open(path) as image:
            return fit_picture(image, side or self.side)


class Listed(NamedTuple):
    """A file below a folder."""

    path: str                                   # from the folder
    label: int                                  # of the class folder it is in
    size: int                                   # bytes
    changed: int                                # when, in nanoseconds


Listing = list[Listed]


def list_files(folder: Path, classes: list[str], suffixes: set[str]) -> Listing:
    """All files with one of the suffixes in a folder's class folders, at any depth, class by class
    and by name; sixteen classes at a time, each entry looked at once, since there may be millions
    on a slow disk. UserError names a folder that may not be read."""
    def walk(place: str) -> list[os.DirEntry]:
        with os.scandir(place) as entries:
            found = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        return [f for e in found for f in (walk(e.path) if e.is_dir() else [e])]

    def of_class(label: int) -> Listing:
        place = folder / classes[label]
        if not place.is_dir():
            return []
        found = [(e, e.stat()) for e in walk(str(place))
                 if os.path.splitext(e.name)[1].lower() in suffixes and e.is_file()]
        return [Listed(os.path.relpath(e.path, folder), label, s.st_size, s.st_mtime_ns)
                for e, s in found]

    try:
        with ThreadPoolExecutor(16) as pool:
            bar = tqdm(pool.map(of_class, range(len(classes))), f"list {folder.name}",
                       len(classes), disable=len(classes) < 100, leave=False)
            return [f for files in bar for f in files]
    except OSError as error:
        raise UserError(f"--data {folder}: can't be read ({error})") from None


def class_folders(root: Path, suffixes: set[str]) -> tuple[list[str], list[tuple[Path, Listing]]]:
    """The class names, and (folder, files) twice: to train on, and held out.

    Held out is `val` beside `train` (`root` holds both, or is the latter), if its class folders
    are named alike; else every file whose path's checksum falls on 1 in 20 (1 in 200 from 200,000
    files on), so that adding files moves no other, and at least one.
    """
    if not root.is_dir():
        raise UserError(f"--data {root}: no such folder (nor 'shapes' or 'fashion-mnist')")
    base = root / "train" if (root / "train").is_dir() and (root / "val").is_dir() else root
    val = base.parent / "val"
    classes = sorted(d.name for d in base.iterdir() if d.is_dir() and not d.name.startswith("."))

    files = list_files(base, classes, suffixes)
    if len(files) < 2:
        raise UserError(f"--data {root}: has {len(files)} pictures in class folders "
                        f"({', '.join(sorted(s[1:] for s in suffixes))}); at least 2 are needed")
    held_out = list_files(val, classes, suffixes) if base.name == "train" and val.is_dir() else []
    if held_out:
        return classes, [(base, files), (val, held_out)]
    if base != root:
        raise UserError(f"--data {root}: val has no pictures in folders named as train's")
    marks = [int(hashlib.sha256(os.fsencode(f.path)).hexdigest()[:8], 16) for f in files]
    share = 20 if len(files) < 200_000 else 200
    out = {i for i, mark in enumerate(marks) if mark % share == 0} or {int(np.argmin(marks))}
    if len(out) == len(files):
        out.pop()
    return classes, [(base, [f for i, f in enumerate(files) if (i in out) == held])
                     for held in (False, True)]


def folder_pictures(root: Path, side: int) -> list[FolderPictures]:
    """Training and held-out pictures of a folder of class folders."""
    classes, parts = class_folders(root, SUFFIXES)
    return [FolderPictures(files, folder, classes, side) for folder, files in parts]
