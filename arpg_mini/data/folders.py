"""Folders of class folders: pictures of any size and mode, some of them damaged.

The one idea: a file is read when it is needed. A file that can't be read is reported by name and
skipped. One bad file out of a million must not end a run.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from .. import UserError
from .builtin import Pictures

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def plain_picture(image: Image.Image, ground: str = "white") -> Image.Image:
    """Any picture -> RGB: rotated as its EXIF data says, and flattened onto a ground."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":          # 16 bits or more per pixel
        deep = np.asarray(image, np.float32)
        top = 65535 if image.mode.startswith("I") else max(float(deep.max()), 1e-9)
        image = Image.fromarray((deep / top * 255).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
    return image.convert("RGB")


def fit_picture(image: Image.Image, side: int) -> np.ndarray:
    """Any picture -> (side, side, 3) uint8: RGB, scaled so that the shorter side fits, and cropped
    at the centre. As in ADM's preprocessing, it is halved by box filters while it is twice too
    large, and then scaled once by a bicubic filter."""
    image = plain_picture(image)
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    width, height = (max(side, round(s * scale)) for s in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    # Only the crop is scaled: a strip one pixel wide would grow to millions of rows.
    box = (left / scale, top / scale, min(image.width, (left + side) / scale),
           min(image.height, (top + side) / scale))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=box))


class FileSource(Pictures):
    """Items in files below `root`, read when needed. `bad` names those that can't be read."""

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
        """The item in a file. Each kind of source defines it. An exception says why it has none."""

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
    """All files with one of the suffixes in a folder's class folders, at any depth, sorted by class
    and name. There may be millions on a slow disk, so it lists sixteen classes at a time and looks
    at each entry once. UserError names a folder that can't be read."""
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
    """The class names, and (folder, files) twice: first to train on, then held out.

    If `root` holds `train` and `val`, or is a `train` with `val` next to it, and both have the same
    class names, `val` is held out. Otherwise a checksum of its path decides whether a file is held
    out: 1 file in 20 is (1 in 200 from 200,000 files on), and at least one. So a new file changes
    nothing for the other files.
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
