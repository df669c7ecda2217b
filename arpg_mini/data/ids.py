"""Files of ids: pictures encoded once, or ids that others extracted. ARPG reads only these.

The one idea: work in parts. Any process may encode any part of the pictures. A finished part is a
file of its own, with a mark of everything it was made of. So a killed run loses only its unfinished
parts. Finally all parts are joined into one array. A small JSON file, written last, describes it:
what it was made of, its checksums, and which pictures were left out.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .. import UserError
from .builtin import Pictures
from .files import digest, npy, npz_array, regular, write_whole
from .folders import FileSource, Kind, Listing, class_folders, hold_out, list_files, usable

PART = 256                                      # pictures per part
MARGIN = 1.1                                    # shorter side of a picture for ten-crop, in sides


def crops(images: np.ndarray, views: str, side: int) -> list[np.ndarray]:
    """(n, s, s, 3) pictures -> their views, each (n, side, side, 3). "center": the pictures.
    "center-flip": also their mirror images. "ten-crop", as in the paper: the four corners and the
    centre of larger pictures, and their mirror images."""
    far = images.shape[1] - side
    corners = [(0, 0), (0, far), (far, 0), (far, far)] if views == "ten-crop" else []
    cut = [images[:, y:y + side, x:x + side] for y, x in [*corners, (far // 2, far // 2)]]
    return cut if views == "center" else cut + [c[:, :, ::-1] for c in cut]


class Ids:
    """Encoded pictures, memory-mapped: `ids` (n, views, N) uint16 and `labels` (n,) int64. OSError
    or ValueError if the files hold something else."""

    def __init__(self, stem: Path):
        self.ids = npy(stem.with_suffix(".npy"))
        self.labels = np.array(npy(stem.with_suffix(".labels.npy")))
        if (self.ids.dtype != np.uint16 or self.ids.ndim != 3 or self.labels.dtype.kind not in "iu"
                or self.labels.shape != self.ids.shape[:1] or not self.ids.size):
            raise ValueError(f"ids {self.ids.dtype} {self.ids.shape}, labels {self.labels.dtype} "
                             f"{self.labels.shape}")

    def __len__(self) -> int:
        return len(self.labels)


class IdFiles(FileSource):
    """Extracted ids, one file per picture: (views, N) or (1, views, N) whole numbers below `vocab`,
    with as many views and tokens as the first readable file."""

    def __init__(self, files: Listing, root: Path, classes: Sequence[str], vocab: int):
        super().__init__(files, root, classes, f"ids 1 {vocab}")
        self.vocab, self.sizes = vocab, None
        for i in range(min(64, len(files))):
            if (first := self.load_one(i, 0)) is not None:
                self.sizes = first.shape
                return
        file, why = next(iter(self.bad.items()))
        raise UserError(f"{file}: no ids of this tokenizer ({why}), nor are the next 63 files")

    def read(self, path: Path, side: int) -> np.ndarray:
        ids = np.array(npy(path))
        ids = ids[0] if ids.ndim == 3 and len(ids) == 1 else ids
        if ids.dtype.kind not in "iu" or ids.ndim != 2 or not ids.size:
            raise ValueError(f"{ids.dtype} {ids.shape}, not whole numbers (views, N)")
        if self.sizes and ids.shape != self.sizes:
            raise ValueError(f"{ids.shape[0]} views of {ids.shape[1]} ids, others have "
                             f"{self.sizes[0]} of {self.sizes[1]}")
        if ids.min() < 0 or ids.max() >= self.vocab:
            raise ValueError(f"ids {ids.min()} to {ids.max()}, must be 0 to {self.vocab - 1}")
        return ids.astype(np.uint16)


ID_KIND = Kind({".npy"}, lambda path: False, lambda path: None)


def codes_in(root: Path) -> tuple[Path, Path] | None:
    """The folders of codes and of labels in `root`, such as `imagenet256_codes` and
    `imagenet256_labels`, or None. UserError if there are several."""
    pairs = [(codes, labels) for codes in sorted(root.glob("*codes")) if codes.is_dir()
             and (labels := codes.with_name(codes.name[:-5] + "labels")).is_dir()]
    if len(pairs) > 1:
        raise UserError(f"--data {root}: holds {pairs[0][0].name} and {pairs[1][0].name}; only one "
                        "of them can be trained on")
    return pairs[0] if pairs else None


def holds_ids(root: Path) -> bool:
    """Whether a folder holds extracted ids, in one of the layouts of `id_files`."""
    return bool(codes_in(root)) or any(next(folder.glob("*.npy"), None)
                                       for base in (root / "train", root)
                                       for folder in base.glob("[0-9]*"))


def id_files(root: Path, vocab: int) -> list[IdFiles] | None:
    """Training and held-out ids of a folder of extracted ids, or None for another kind of folder.

    Two layouts: `CLASS_INDEX/NAME.npy` (below `train` and `val`, or held out by checksum), and
    `codes/N.npy` with the class of each in `labels/N.npy`; their names may begin alike, as in
    `imagenet256_codes` and `imagenet256_labels`.
    """
    if not holds_ids(root):
        return None
    if pair := codes_in(root):
        codes, labels = pair
        files, left_out = list_files(root, [codes.name], ID_KIND)
        with ThreadPoolExecutor(16) as pool:
            files = list(pool.map(lambda f: f._replace(
                label=read_label(labels / Path(f.path).relative_to(codes.name))), files))
        if len(files) < 2:
            raise UserError(f"--data {root}: {codes.name} has {len(files)} .npy files; at least 2 "
                            "are needed")
        classes = range(1 + max(f.label for f in files))
        stay = {path for path, _ in usable(root, classes, files, ID_KIND)}
        parts = [(root, part) for part in hold_out(root, files, stay)]
    else:
        names, parts, left_out = class_folders(root, ID_KIND)
        if wrong := [name for name in names if not name.isdecimal()]:
            raise UserError(f"--data {root}: folders of ids are named by class number, not "
                            f"{wrong[0]!r}")
        parts = [(folder, [f._replace(label=int(names[f.label])) for f in files])
                 for folder, files in parts]
    classes = [str(i) for i in range(1 + max(f.label for _, files in parts for f in files))]
    sources = [IdFiles(files, folder, classes, vocab) for folder, files in parts]
    sources[0].left_out = left_out
    return sources


def read_label(path: Path) -> int:
    """The class in a file that holds one whole number."""
    try:
        label = npy(path)
        if label.dtype.kind not in "iu" or label.size != 1 or not 0 <= label.item() < 65536:
            raise ValueError(f"{label.dtype} {label.shape}, {label.ravel()[:3]}")
        return label.item()
    except Exception as error:
        raise UserError(f"{path}: no file of one class number ({error})") from None


def verified(stem: Path) -> dict:
    """The description of the files of ids at `stem`, after their checksums are verified. UserError
    names a file that is missing or has changed since it was written."""
    about = stem.with_suffix(".json")
    try:
        said = json.loads(regular(about).read_text(encoding="utf-8"))
        for suffix in (".npy", ".labels.npy"):
            if digest(stem.with_suffix(suffix)) != said["sha256"][suffix]:
                raise UserError(f"{stem.with_suffix(suffix)}: has changed since it was written "
                                f"(its checksum is not the one in {about.name})")
        if not (isinstance(said["made_of"]["tokenizer"], str) and isinstance(said["pictures"], int)
                and said["classes"] and all(isinstance(name, str) for name in said["classes"])
                and isinstance(said["left_out"], dict)):
            raise ValueError("what made them, their number, classes or what was left out")
        return said
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{about}: does not describe files of ids "
                        f"({type(error).__name__}: {error})") from None


def part_file(stem: Path, part: int) -> Path:
    return stem.with_suffix(".parts") / f"{part:06d}.npz"


def read_part(path: Path, mark: str) -> dict[str, np.ndarray] | None:
    """A finished part if it was made of what `mark` says, otherwise None."""
    try:
        content = {name: npz_array(path, name) for name in ("mark", "kept", "ids", "bad")}
        json.loads(str(content["bad"]))
        whole = (content["mark"] == mark and content["ids"].ndim == 3
                 and content["ids"].dtype == np.uint16 and content["kept"].dtype.kind == "i"
                 and content["kept"].shape == content["ids"].shape[:1])
        return content if whole else None
    except (UserError, ValueError):            # a truncated or foreign file is not a part
        return None


def encode_parts(source: Pictures, load: Callable, encode: Callable, stem: Path, made_of: dict,
                 rank: int = 0, world: int = 1) -> Iterator[float]:
    """Encode this process's share of the missing parts. It yields the share of them that is done.

    load(indices) -> usable indices and their items. encode(items) -> (n, views, N) ids.
    While one part is encoded, the next one is loaded.
    """
    mark = mark_of(made_of)
    stem.with_suffix(".parts").mkdir(parents=True, exist_ok=True)
    todo = [p for p in range(rank, -(-len(source) // PART), world)
            if read_part(part_file(stem, p), mark) is None]
    rows = [range(p * PART, min((p + 1) * PART, len(source))) for p in todo]
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(load, rows[0]) if todo else None
        for i, part in enumerate(todo):
            kept, items = coming.result()
            coming = ahead.submit(load, rows[i + 1]) if i + 1 < len(todo) else None
            ids = encode(items).astype(np.uint16) if len(kept) else np.empty((0, 0, 0), np.uint16)
            bad = {source.name(j): source.bad[source.name(j)]
                   for j in sorted(set(rows[i]) - set(kept.tolist()))}
            write_whole(part_file(stem, part), lambda file: np.savez(
                file, mark=mark, kept=kept, ids=ids, bad=json.dumps(bad)))
            yield (i + 1) / len(todo)


def mark_of(made_of: dict) -> str:
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def put_together(source: Pictures, stem: Path, made_of: dict) -> dict:
    """Join all parts into one array and write its description, which is returned."""
    paths = [part_file(stem, p) for p in range(-(-len(source) // PART))]
    heads, kept, bad = [], [], dict(source.left_out)
    for path in paths:
        part = read_part(path, mark_of(made_of))
        if part is None:
            raise UserError(f"{path}: this part is missing or can't be read; run again")
        kept.append(part["kept"])
        bad |= json.loads(str(part["bad"]))
        if len(part["kept"]):
            heads.append(part["ids"].shape[1:])
    if not heads:
        raise UserError(f"{next(iter(bad), stem)}: none of {len(source)} pictures can be read")
    picked = np.concatenate(kept)

    def write(file):
        np.lib.format.write_array_header_1_0(file, {
            "descr": "<u2", "fortran_order": False, "shape": (len(picked), *heads[0])})
        for path in paths:
            file.write(np.ascontiguousarray(npz_array(path, "ids"), "<u2").data)

    write_whole(stem.with_suffix(".npy"), write)
    write_whole(stem.with_suffix(".labels.npy"), lambda file: np.save(file, source.labels[picked]))
    said = {"made_of": made_of, "classes": source.classes, "pictures": len(picked),
            "left_out": bad, "sha256": {suffix: digest(stem.with_suffix(suffix))
                                        for suffix in (".npy", ".labels.npy")}}
    text = json.dumps(said, indent=1).encode()
    write_whole(stem.with_suffix(".json"), lambda file: file.write(text))
    shutil.rmtree(stem.with_suffix(".parts"))
    return said
