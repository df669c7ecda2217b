"""Folders of class folders: pictures of any size and mode, some of them damaged.

The one idea: nothing is dropped in silence. A file is read when it is needed. One that can't be
read is reported by name and skipped, since one bad file out of a million must not end a run.
"""

import contextlib
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from .. import UserError
from .builtin import Pictures
from .colours import fit_picture, plain_picture
from .files import regular

# What file systems and viewers put next to pictures. Names that begin with a dot are left out too.
NOT_DATA = {"@eadir", "@__thumb", "@recycle", "#recycle", "$recycle.bin", "__macosx", "lost+found",
            "system volume information", "thumbs.db", "desktop.ini"}
NOT_DATA_WHY = "made by a file system or a viewer"
HUGE, HUGE_ONES = 2**25, Lock()     # pictures of more pixels are decoded one at a time
LOOKS = 16          # files without a picture in them, after which their ending is not looked at
SPLIT = re.compile("(train(ing)?|test(ing)?|val(id(ation)?)?|eval(uation)?|dev|hold-?out)"
                   r"([-_ ]?(set|data|images?|pictures|split|\d+))*", re.IGNORECASE)


class FileSource(Pictures):
    """Items in files below `root`, read when needed. `bad` names those that can't be read."""

    def __init__(self, files: "Listing", root: Path, classes: Sequence[str], kind: str):
        self.files, self.root = [f.path for f in files], root
        labels, digest = np.array([f.label for f in files], np.int64), hashlib.sha256(kind.encode())
        for f in files:
            digest.update(os.fsencode(f"\n{f.path} {f.label} {f.size} {f.changed}"))
        super().__init__(np.empty(0), labels, classes, digest.hexdigest())

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
    """Pictures in `root/CLASS/…`, scaled to `side` pixels per side."""

    def __init__(self, files: "Listing", root: Path, classes: Sequence[str], side: int):
        super().__init__(files, root, classes, f"folder 2 {side}")
        self.side = side

    def read(self, path: Path, side: int) -> np.ndarray:
        with Image.open(regular(path)) as image:
            huge = image.width * image.height > HUGE
            with HUGE_ONES if huge else contextlib.nullcontext():
                return fit_picture(image, side or self.side)


class Listed(NamedTuple):
    """A file below a folder."""

    path: str                                   # from the folder
    label: int                                  # of its class
    size: int                                   # bytes
    changed: int                                # when, in nanoseconds


Listing = list[Listed]


class Kind(NamedTuple):
    """Which files of a folder are data, and which of those can be used."""

    endings: set[str]                           # of files that are taken as they are
    fits: Callable[[str], bool]                 # is a file of another ending one of them?
    check: Callable[[Path], object]             # raises an exception if a file can't be used


def is_picture(path: str) -> bool:
    """Whether Pillow recognises a file by its content."""
    try:
        with Image.open(path):
            return True
    except Exception:                           # a codec may raise anything
        return False


def picture_kind() -> Kind:
    """Everything that Pillow reads."""
    def check(path: Path) -> None:
        with Image.open(path) as image:
            plain_picture(image)

    Image.init()
    return Kind({e for e, name in Image.EXTENSION.items() if name in Image.OPEN}, is_picture, check)


def list_files(folder: Path, classes: list[str], kind: Kind) -> tuple[Listing, dict[str, str]]:
    """All files of a kind in a folder's class folders, at any depth, sorted by class and name. And
    what was left out: path -> why.

    There may be millions on a slow disk, so it lists sixteen classes at a time and looks at each
    entry once. It stops looking into files of an ending after `LOOKS` of a class were none of the
    kind. UserError names a folder that can't be read."""
    left_out: dict[str, str] = {}

    def walk(place: str, inside: tuple) -> list[os.DirEntry]:
        with os.scandir(place) as entries:
            found = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        files = []
        for e in found:
            if e.name.lower() in NOT_DATA:
                left_out[e.path] = NOT_DATA_WHY
            elif e.is_file():
                files.append(e)
            elif not e.is_dir():
                left_out[e.path] = (f"a link to {os.readlink(e)}, which can't be followed"
                                    if e.is_symlink() else "no regular file")
            elif (mine := (e.stat().st_dev, e.stat().st_ino)) in inside:
                left_out[e.path] = "a link to a folder that it lies in"
            else:
                files += walk(e.path, (*inside, mine))
        return files

    def of_class(label: int) -> Listing:
        place, misses, listed = folder / classes[label], Counter(), []
        if not place.is_dir():
            return []
        top = place.stat()
        for e in walk(str(place), ((top.st_dev, top.st_ino),)):
            ending = os.path.splitext(e.name)[1].lower()
            if ending not in kind.endings and (misses[ending] == LOOKS or not kind.fits(e.path)):
                misses[ending] = min(LOOKS, misses[ending] + 1)
                left_out[e.path] = "not recognised by its content"
                continue
            s = e.stat()
            listed.append(Listed(os.path.relpath(e.path, folder), label, s.st_size, s.st_mtime_ns))
        return listed

    try:
        with ThreadPoolExecutor(16) as pool:
            bar = tqdm(pool.map(of_class, range(len(classes))), f"list {folder.name}",
                       len(classes), disable=len(classes) < 100, leave=False)
            return [f for files in bar for f in files], left_out
    except OSError as error:
        raise UserError(f"--data {folder}: can't be read ({error})") from None


def due(files: Listing) -> tuple[np.ndarray, np.ndarray]:
    """Per file a number, a checksum of its path, and whether it is due to be held out: 1 file in 20
    is, 1 in 200 from 200,000 files on. So a new file changes nothing for the other files."""
    marks = np.array([int(hashlib.sha256(os.fsencode(f.path)).hexdigest()[:8], 16) for f in files])
    return marks, marks % (20 if len(files) < 200_000 else 200) == 0


def usable(base: Path, names: Sequence, files: Listing, kind: Kind) -> list[tuple[str, str]]:
    """For each class the path of a file that can be used, if possible one that is not due to be
    held out; or "", and why there is none."""
    by_class: list[list[str]] = [[] for _ in names]
    for i in np.argsort(due(files)[1], kind="stable"):
        by_class[files[i].label].append(files[i].path)

    def first(paths: list[str]) -> tuple[str, str]:
        why = "nothing in it can be used"
        for path in paths:
            try:
                kind.check(base / path)
                return path, ""
            except Exception as error:          # a codec may raise anything
                why = f"no readable picture, such as {path}: {type(error).__name__}: {error}"
        return "", why

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(tqdm(pool.map(first, by_class), "open one per class", len(names),
                         disable=len(names) < 100, leave=False))


def hold_out(root: Path, files: Listing, stay: set[str]) -> tuple[Listing, Listing]:
    """Split files: to train on, and held out: what is due, and at least one. The paths of `stay`,
    one of each class, are trained on."""
    (marks, out), free = due(files), np.array([f.path not in stay for f in files])
    if not free.any():
        raise UserError(f"--data {root}: has one file per class; at least one class needs two, so "
                        "that one of them can be held out")
    out &= free
    out[np.where(free, marks, 2**32).argmin()] |= not out.any()
    return tuple([f for f, held in zip(files, out) if held == part] for part in (False, True))


def refuse_levels(root: Path, base: Path, classes: list[str], files: Listing) -> None:
    """UserError if the folders in `base` are plainly parts of a data set, or hold the classes."""
    splits = [name for name in classes if SPLIT.fullmatch(name)]
    train = [name for name in splits if name.lower().startswith("train")]
    deep = all(f.path.count(os.sep) > 1 for f in files)
    what = ("are parts of a data set, not classes" if splits and
            (len(splits) == len(classes) or 0 < len(train) < len(splits)) else
            "have all of their pictures deeper in folders, so they are no classes" if deep else "")
    if what:
        deepest = base / max(files, key=lambda f: f.path.count(os.sep)).path
        right = base / train[0] if train else deepest.parents[1]
        raise UserError(f"--data {root}: {short(splits or classes)} {what}; name the folder whose "
                        f"folders are the classes{f', such as {right}' * deep}")


def class_folders(root: Path, kind: Kind) -> tuple[list[str], list[tuple[Path, Listing]],
                                                   dict[str, str]]:
    """The class names; (folder, files) twice: first to train on, then held out; what was left out,
    path -> why.

    If `root` holds `train` and `val`, or is a `train` with `val` next to it, and both have the same
    class names, `val` is held out. Otherwise a part of the files is. A folder without a file that
    can be used is no class, and of each class at least one such file is trained on.
    """
    if not root.is_dir():
        raise UserError(f"--data {root}: no such folder (nor 'shapes' or 'fashion-mnist')")
    base = root / "train" if (root / "train").is_dir() and (root / "val").is_dir() else root
    val = base.parent / "val"
    names, left_out = top(base, kind)
    files, left = list_files(base, names, kind)
    left_out |= left
    if len(files) < 2:
        raise UserError(f"--data {root}: has {len(files)} pictures in class folders; at least 2 "
                        "are needed")
    found = usable(base, names, files, kind)
    for name, (path, why) in zip(names, found):
        if not path:
            left_out[str(base / name)] = f"no class: {why}"
    if not any(path for path, _ in found):
        raise UserError(f"--data {base / names[0]}: no class: {found[0][1]}")
    kept = [label for label, (path, _) in enumerate(found) if path]
    if len(kept) < len(names):
        names = [names[label] for label in kept]
        files = [f._replace(label=kept.index(f.label)) for f in files if f.label in kept]
    refuse_levels(root, base, names, files)
    if base.name == "train" and val.is_dir():
        held, left = list_files(val, names, kind)
        left_out |= left
        if held:
            return names, [(base, files), (val, held)], left_out
        if top(val, kind)[0]:
            raise UserError(f"--data {root}: val has no pictures in folders named as train's")
        left_out[str(val)] = "has no class folders; a part of the training pictures is held out"
    train, held = hold_out(root, files, {path for path, _ in found})
    return names, [(base, train), (base, held)], left_out


def top(base: Path, kind: Kind) -> tuple[list[str], dict[str, str]]:
    """The names of the folders in `base`, and what else is there that should be in one."""
    try:
        found = sorted(p for p in base.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise UserError(f"--data {base}: can't be read ({error})") from None
    left_out = {str(p): NOT_DATA_WHY for p in found if p.name.lower() in NOT_DATA}
    left_out |= {str(p): "lies in no class folder" for p in found
                 if p.suffix.lower() in kind.endings and not p.is_dir()}
    return [p.name for p in found if p.is_dir() and str(p) not in left_out], left_out


def short(names: Sequence[str], most: int = 8) -> str:
    """The first of some names. One with a comma in it is quoted."""
    return ", ".join(repr(n) if "," in n else n for n in names[:most]) + ", …" * (len(names) > most)


def folder_pictures(root: Path, side: int) -> list[FolderPictures]:
    """Training and held-out pictures of a folder of class folders."""
    classes, parts, left_out = class_folders(root, picture_kind())
    sources = [FolderPictures(files, folder, classes, side) for folder, files in parts]
    sources[0].left_out = left_out
    return sources
