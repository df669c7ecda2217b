"""Pictures and ids equal their definition: from the files of any source to the ids of a run.

The slow versions handle one picture at a time. The tokenizer of most properties is `hashed`: each
id depends on all pixels of its patch, and takes all values of 16 bits.
"""

import contextlib
import gzip
import hashlib
import io
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st
from PIL import Image

from arpg_mini import TokenizerConfig, UserError, VQTokenizer
from arpg_mini.config import VIEWS
from arpg_mini.data import builtin, colours, folders, ids
from arpg_mini.run import checkpoint, describe, prepare, processes
from arpg_mini.tokenizer import to_device
from tests.strategies import for_all

CPU = torch.device("cpu")
WIDE = TokenizerConfig(channels=32, multipliers=(1, 1), encoder_blocks=1, decoder_blocks=1,
                       latent_channels=4, codebook_size=65536, code_dim=1, local_encoder=True)
load_tokenizer = checkpoint.load_tokenizer
numbers = st.integers(0, 2**32)


def same(where: str, got: np.ndarray, right: np.ndarray, tolerance: float = 0) -> None:
    """Two arrays are equal. The message says where they first differ."""
    __tracebackhide__ = True
    got, right = np.asarray(got), np.asarray(right)
    assert got.shape == right.shape, f"{where}: {got.shape}, by definition {right.shape}"
    off = np.argwhere(abs(got.astype(float) - right.astype(float)) > tolerance)
    assert not len(off), (f"{where}: at {tuple(map(int, off[0]))} {got[tuple(off[0])]}, by "
                          f"definition {right[tuple(off[0])]}")


def refusal(work: Callable, *arguments, **how) -> str:
    """What is wrong in the words of a user's mistake, or that nothing is."""
    try:
        work(*arguments, **how)
        return "it is accepted"
    except (UserError, ValueError) as error:
        return str(error)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def hashed(self, images: torch.Tensor) -> torch.Tensor:
    """In place of `VQTokenizer.encode`: (B, 3, height, width) -> (B, h, w) ids below 65,536."""
    s = self.config.stride
    pixels = ((images + 1) * 127.5).round().long()
    patches = pixels.unfold(2, s, s).unfold(3, s, s).permute(0, 2, 3, 1, 4, 5).flatten(3)
    factors = torch.tensor([pow(31, i, 65536) for i in range(patches.shape[-1])])
    return (patches * factors).sum(-1) % 65536


def cut_by_hand(picture: np.ndarray, views: str, side: int) -> list[np.ndarray]:
    """The views of one picture (s, s, 3), pixel by pixel."""
    far, cut = len(picture) - side, []
    corners = [(0, 0), (0, far), (far, 0), (far, far)] if views == "ten-crop" else []
    for mirrored in [False] if views == "center" else [False, True]:
        for top, left in [*corners, (far // 2, far // 2)]:
            cut.append(np.array([[picture[top + y, left + (side - 1 - x if mirrored else x)]
                                  for x in range(side)] for y in range(side)]))
    return cut


# Pixels.

@for_all(40, side=st.integers(1, 7), far=st.integers(0, 5), n=st.integers(1, 3),
         views=st.sampled_from(VIEWS), seed=numbers)
def test_views_are_cut_pixel_by_pixel(side, far, n, views, seed):
    """For any margin, odd or even. Broken if a crop is off by one pixel, or not mirrored."""
    pictures = noise(seed, n, side + far, side + far)
    got = ids.crops(pictures, views, side)
    right = [cut_by_hand(picture, views, side) for picture in pictures]
    assert len(got) == len(right[0]), f"{len(got)} views, by definition {len(right[0])}"
    for i, view in enumerate(got):
        same(f"view {i}", view, [cut[i] for cut in right])


@for_all(6, n=st.integers(1, 4), views=st.sampled_from(VIEWS), margin=st.integers(0, 3),
         side=st.sampled_from([2, 4, 6]), few=st.sampled_from([1, 2, 3, 100]), seed=numbers)
def test_views_are_encoded_as_if_one_at_a_time(n, views, margin, side, few, seed):
    """Broken if views or pictures change places, if ids lose bits, if the last pictures of a batch
    are lost, or if more than 2^21 pixels of several pictures are encoded at a time."""
    torch.manual_seed(seed)
    tokenizer = VQTokenizer(WIDE).eval()
    pictures, sizes = noise(seed, n, side + margin, side + margin), []

    def encode(self, images):
        sizes.append(len(images))
        return hashed(self, images)

    for how in ("weights", "hash"):
        with patch.object(VQTokenizer, "encode", encode if how == "hash" else VQTokenizer.encode):
            got = prepare.encode_views(tokenizer, CPU, side, views, pictures)
            right = [[tokenizer.encode(to_device(view[None], CPU)).flatten().numpy()
                      for view in cut_by_hand(picture, views, side)] for picture in pictures]
        same(f"ids by {how}", got, right)
    big = np.zeros((n, m := 2 * math.isqrt(2**19 // few), m, 3), np.uint8)
    big[:, 0, 0, 0] = range(1, n + 1)
    sizes.clear()
    with patch.object(VQTokenizer, "encode", lambda self, images: (
            sizes.append(len(images)), ((images[:, :1, :1, :1] + 1) * 127.5).round())[1]):
        got = prepare.encode_views(tokenizer, CPU, m, "center", big[:, :m, :m])
    same("ids of large pictures", got.ravel(), range(1, n + 1))
    assert max(sizes) * m * m <= 2**21 or max(sizes) == 1, f"{max(sizes)} pictures of {m}×{m}"


def bicubic(n: int, count: int, start: float, scale: float) -> np.ndarray:
    """(count, n): the share of each of n pixels in each of `count` pixels. These begin at `start`
    and are `scale` pixels wide."""
    rows, wide = [], max(scale, 1.0)
    for i in range(count):
        at = [abs(j + 0.5 - start - (i + 0.5) * scale) / wide for j in range(n)]
        row = [1.5 * t**3 - 2.5 * t**2 + 1 if t < 1 else
               -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0 for t in at]
        rows.append(np.array(row) / sum(row))
    return np.array(rows)


def fitted_by_hand(picture: np.ndarray, side: int) -> np.ndarray:
    """Halved while twice too large; scaled as a whole by a bicubic filter; its centre cut out."""
    while min(picture.shape[:2]) >= 2 * side:
        half = picture.shape[1] // 2, picture.shape[0] // 2
        picture = np.asarray(Image.fromarray(picture).resize(half, Image.BOX))
    scale = min(picture.shape[:2]) / side
    sizes = [max(side, round(n / scale)) for n in picture.shape[:2]]
    down, across = (bicubic(n, size, 0, scale) for n, size in zip(picture.shape, sizes))
    middle = np.floor(np.einsum("xw,hwc->hxc", across, picture) + 0.5).clip(0, 255)
    whole = np.floor(np.einsum("yh,hxc->yxc", down, middle) + 0.5).clip(0, 255)
    top, left = ((size - side) // 2 for size in sizes)
    return whole[top:top + side, left:left + side]


@for_all(40, width=st.integers(1, 40), height=st.integers(1, 40), side=st.integers(1, 12),
         seed=numbers)
def test_a_picture_is_halved_and_scaled_and_its_centre_is_cut_out(width, height, side, seed):
    """No pixel is so light or dark that a filter would exceed 0 or 255.

    Broken by another filter, another number of halvings, or a crop that is not the centre."""
    picture = noise(seed, height, width) // 4 + 96
    same("pixels", folders.fit_picture(Image.fromarray(picture), side),
         fitted_by_hand(picture, side), tolerance=1.5)


@for_all(30, bits=st.integers(2, 16), inverted=st.booleans(), seed=numbers)
def test_deep_grey_is_scaled_to_eight_bits(bits, inverted, seed):
    """Broken if white becomes 254, if bits are cut off, or if white at 0 becomes black."""
    white = 2**bits - 1
    deep = np.random.default_rng(seed).integers(0, white + 1, (3, 5)).astype(np.uint16)
    deep[0, :2] = 0, white
    exact = [[round(int(v) * 255 / white) for v in row] for row in deep]
    right = 255 - np.array(exact) if inverted else exact
    tags = {258: (bits,), 262: 0 if inverted else 1}
    same(f"{bits} bits", colours.eight_bits(deep, "I;16", tags), right)
    if bits == 16 and not inverted:
        file = io.BytesIO()
        Image.fromarray(deep).save(file, "PNG")
        same("a PNG of 16 bits", colours.plain_picture(Image.open(file)), np.stack([right] * 3, -1))


# The shapes.

def inside(x: np.ndarray, y: np.ndarray, corners: list) -> np.ndarray:
    """Which points lie in a polygon: a ray to the right crosses its sides an odd number of times.
    """
    odd = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1]):
        if y0 != y1:
            odd ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return odd


@for_all(12, seed=st.integers(0, 2**31), index=st.integers(0, 2**31))
def test_a_shape_is_the_points_in_its_polygons(seed, index):
    """At 8×8 points per pixel, for an endless pattern, up to the width of a line.

    Broken if a shape has another class's form, stands on its head, or repeats at another distance.
    """
    got, label = builtin.draw_shape(seed, index)
    rng = np.random.default_rng([seed, index])
    drawn = [int(rng.integers(n)) for n in (10, 6, 2)]
    assert label == drawn[0], f"class {label}, by definition {drawn[0]}"
    right, down, smaller, turn = rng.uniform(-1, 1, 4)
    radius, angle = 7.7 * (1 - 0.02 + 0.02 * smaller), 2 * turn * math.pi / 180
    column, row = 4 * rng.integers(4, size=2)
    y, x = (np.mgrid[:192, :192] + 0.5) / 8
    x = (x - column - 0.2 * right + 8) % 16 - 8             # from the nearest shape's centre
    y = (y - row - 0.2 * down + 8) % 16 - 8
    filled = np.zeros(x.shape, bool)
    for polygon, fill in list(builtin.SHAPES.values())[label]:
        for dx in (-16, 0, 16):                             # neighbours may reach in here
            for dy in (-16, 0, 16):
                u, v = (x + dx) / radius, (y + dy) / radius
                u, v = (u * math.cos(angle) + v * math.sin(angle),
                        v * math.cos(angle) - u * math.sin(angle))
                part = inside(u, v, [(float(a), float(b)) for a, b in polygon])
                filled = filled | part if fill else filled & ~part
    share = filled.reshape(24, 8, 24, 8).mean((1, 3))[..., None]
    wanted = builtin.COLOURS[drawn[1]] * share + builtin.GROUNDS[drawn[2]] * (1 - share)
    off = abs(got - wanted).mean()
    assert off < 6, f"{list(builtin.SHAPES)[label]}: differs by {off:.1f} of 255 on average"


# Whether the middle, the left, the top, three corners, and a point below the middle are filled.
FACTS = {
    "circle": (True, False, False, False, False, False, True),
    "ring": (False, True, True, False, False, False, False),
    "triangle": (True, False, True, False, True, True, True),
    "square": (True, True, True, True, True, True, True),
    "bar": (True, True, False, False, False, False, False),
    "pole": (True, False, True, False, False, False, True),
    "cross": (True, True, True, False, False, False, True),
    "saltire": (True, False, False, True, True, True, True),
    "corner": (False, True, False, True, True, True, True),
    "half disc": (True, True, False, False, False, False, True),
}


def test_the_names_of_the_shapes_are_those_of_their_forms():
    """Each form is told by simple facts: where it is filled, its symmetries, its area."""
    def drawn(name):
        y, x = (np.mgrid[:40, :40] - 19.5) / 18
        filled = np.zeros(x.shape, bool)
        for polygon, fill in builtin.SHAPES[name]:
            part = inside(x, y, polygon)
            filled = filled | part if fill else filled & ~part
        return filled

    for name in builtin.SHAPES:
        f = drawn(name)
        facts = (bool(f[20, 20]), bool(f[20, 3]), bool(f[3, 20]), bool(f[5, 5]), bool(f[34, 5]),
                 bool(f[34, 34]), bool(f[28, 20]))
        assert facts == FACTS[name], f"{name}: filled at {facts}, by definition {FACTS[name]}"


@for_all(3, seed=st.integers(0, 2**16), other=st.integers(0, 2**16))
def test_no_run_draws_a_held_out_shape(seed, other):
    """A set of shapes is named by its seed. Of any two runs, what one trains on and what the other
    holds out come from sets of different seeds, and picture i of a set depends on both numbers.

    Broken if the seed of the held-out pictures is training's, or becomes it with another --seed.
    """
    def parts(seed):
        with patch.object(builtin, "shapes", lambda count, seed: (
                np.zeros((count, 1, 1, 3), np.uint8), np.full(count, seed))):
            return prepare.load_pictures({"data": "shapes", "seed": seed})

    train, held_out = parts(seed)
    sizes = len(train), len(held_out)
    assert sizes == (40_000, 2000), f"{sizes} pictures"
    for a, b in ((seed, seed), (seed, other), (seed, seed + 1), (seed + 1, seed)):
        sets = {int(part.labels[0]) for part in (parts(a)[0], parts(b)[1])}
        assert len(sets) == 2, f"run {a} trains on the set {sets} that run {b} holds out"
    assert train.fingerprint != held_out.fingerprint, "the parts have the same fingerprint"
    drawn = [builtin.shapes(4, seed + s)[0] for s in (0, 1)]
    same("of a longer set", builtin.shapes(6, seed)[0][:4], drawn[0])
    apart = [(a[i] != b[j]).any() for a in drawn for b in drawn for i in range(4) for j in range(4)
             if a is not b or i != j]
    assert np.mean(apart) > 0.9, f"only {np.mean(apart):.0%} of pictures differ from each other"


# Sources: what is trained on and what is held out, from the files to the ids.

@cache
def wide_tokenizer() -> tuple[VQTokenizer, bytes]:
    """A tokenizer of 65,536 ids, and its file."""
    torch.manual_seed(0)
    tokenizer = VQTokenizer(WIDE)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save_tokenizer(file := Path(folder) / "vq.pt", tokenizer)
        return tokenizer, file.read_bytes()


@contextmanager
def quiet() -> Iterator[io.StringIO]:
    with (contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as e,
          patch.object(prepare, "held", [])):
        try:
            yield e
        finally:
            for file in prepare.held:           # and the locks with them
                file.close()


@cache
def loaded(raw: bytes) -> tuple[VQTokenizer, dict]:
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder) / "vq.pt").write_bytes(raw)
        return load_tokenizer(file)


def loaded_once(file: Path) -> tuple[VQTokenizer, dict]:
    """`checkpoint.load_tokenizer`, fast for files that hold the same."""
    return loaded(file.read_bytes())


def prepared(place: Path, *flags: object, encode=hashed) -> tuple[prepare.Ready, list[dict], str]:
    """What `train_mini.py` prepares in the folder `place / "run"`: the ids, what describes the two
    files, and what it printed as a warning."""
    out = place / "run"
    out.mkdir(exist_ok=True)
    for file in (place / "vq.pt", out / "tokenizer.pt"):        # to write it by torch takes longer
        if not file.exists():
            file.write_bytes(wide_tokenizer()[1])
    options = describe.parse([*map(str, ("--tokenizer", place / "vq.pt", "--out", out, *flags))])
    with (quiet() as said, patch.object(VQTokenizer, "encode", encode),
          patch.object(checkpoint, "load_tokenizer", loaded_once),
          patch.object(checkpoint, "load_any_tokenizer", loaded_once),
          patch.object(os, "fsync", lambda file: None)):
        ready = prepare.prepare(describe.describe_run(options), options, processes.Stop(()), CPU)
    return ready, [ids.verified(out / "ids" / part) for part in prepare.PARTS], said.getvalue()


def sorted_walk(place: Path) -> list[Path]:
    """All files below a folder. In each folder, files and folders are taken by name."""
    return [file for p in sorted(place.iterdir(), key=lambda p: p.name)
            for file in (sorted_walk(p) if p.is_dir() else [p])]


def is_due(path: str) -> bool:
    return int(hashlib.sha256(path.encode()).hexdigest()[:8], 16) % 20 == 0


def held_out_by_hand(files: list[str], of: dict[str, object], good: set[str]) -> list[str]:
    """1 file in 20 is due to be held out. But of each class one file that can be used stays, and
    one file at least is held out."""
    stay = {next(f for f in sorted(files, key=is_due) if of[f] == label and f in good)
            for label in set(of.values())}
    free = [f for f in files if f not in stay]
    return ([f for f in free if is_due(f)]
            or [min(free, key=lambda f: hashlib.sha256(f.encode()).hexdigest()[:8])])


def check_parts(where: str, ready: prepare.Ready, said: list[dict], right: list[list], views: str,
                classes: list[str], left_out: list[set[str]]) -> None:
    """Compare both parts with (ids of all views, class) of each picture, in order."""
    for part, made, about, wanted, bad, v in zip(
            prepare.PARTS, (ready.ids, ready.held_out), said, right, left_out, (views, "center")):
        assert len(made) == len(wanted), f"{where}: {part}: {len(made)} pictures, by definition " \
                                         f"{len(wanted)}"
        same(f"{where}: {part}: ids", made.ids, [codes for codes, _ in wanted])
        same(f"{where}: {part}: labels", made.labels, [label for _, label in wanted])
        got = about["classes"], about["pictures"], set(about["left_out"]), about["made_of"]["views"]
        assert got == (classes, len(wanted), bad, v), \
            f"{where}: {part} is described by {got}, by definition {classes, len(wanted), bad, v}"
    assert ready.model.num_classes == len(classes), f"{where}: {ready.model.num_classes} classes"


def pick_names(rng: np.random.Generator, folder: str, count: int, ending: str,
               others: float = 0.1) -> list[str]:
    """Names of files, of which a third are due to be held out, or all if there are no others."""
    names: list[str] = []
    while len(names) < count:
        name = f"{rng.integers(10**6)}{ending}"
        if is_due(f"{folder}/{name}") or rng.random() < others:
            names.append(name)
    return names


@for_all(12, layout=st.sampled_from(["flat", "both", "train", "no val", "empty val"]),
         views=st.sampled_from(VIEWS), side=st.sampled_from([4, 6, 12]), seed=numbers,
         names=st.lists(st.sampled_from(["b", "A", "10", "9", "é", "z, y"]), min_size=1,
                        max_size=3, unique=True))
def test_a_folders_pictures_become_its_ids(layout, views, side, seed, names):
    """`val`, in the folder or next to it, is held out; otherwise the files that are due are. Each
    readable picture is in one part, in the order of its class and name.

    Broken if a picture is in both parts or in none, if `val` is ignored, if pictures and labels
    shift where a file is bad, if the views are cut from pictures of another size.
    """
    rng, bad, class_of = np.random.default_rng(seed), set(), {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        base = root if layout == "flat" else root / "train"
        for top in [base] if layout in ("flat", "no val") else [base, root / "val"]:
            top.mkdir(parents=True, exist_ok=True)
            for name in names if top == base or layout != "empty val" else []:
                (top / name / "deep").mkdir(parents=True)
                lone = name in names[1:2]                   # a class of one picture, which is due
                count = 1 if lone else int(rng.integers(2, 6))
                for i, file in enumerate(pick_names(rng, name, count, ".png", 0.1 * (not lone))):
                    path = top / name / ("deep" if i == 1 else "") / file
                    size = rng.integers(side // 2 + 1, 3 * side, 2)
                    Image.fromarray(noise(int(rng.integers(2**31)), *size)).save(path)
                    class_of[path] = sorted(names).index(name)
                    if i > 1 and rng.random() < 0.3:
                        path.write_bytes(path.read_bytes()[:40])
                        bad.add(str(path))
        given = base if layout in ("flat", "train", "no val") else root
        files = {str(f.relative_to(base)): f for name in sorted(names)
                 for f in sorted_walk(base / name)}
        if layout in ("both", "train"):
            parts = [list(files.values()), [f for name in sorted(names)
                                            for f in sorted_walk(root / "val" / name)]]
        else:
            out = held_out_by_hand(list(files), {f: f.split("/")[0] for f in files},
                                   {f for f in files if str(files[f]) not in bad})
            parts = [[files[f] for f in files if f not in out], [files[f] for f in files
                                                                 if f in out]]
        assume(all({str(f) for f in part} - bad for part in parts))
        ready, said, _ = prepared(Path(folder), "--data", given, "--side", side, "--views", views)
        tokenizer, right = wide_tokenizer()[0], []
        for part, v in zip(parts, (views, "center")):
            larger = math.ceil(1.1 * side) if v == "ten-crop" else side
            right.append([([hashed(tokenizer, to_device(cut[None], CPU)).flatten().numpy()
                            for cut in cut_by_hand(folders.fit_picture(Image.open(f), larger), v,
                                                   side)], class_of[f])
                          for f in part if str(f) not in bad])
        left_out = [{str(f) for f in part} & bad for part in parts]
        left_out[0] |= {str(root / "val")} if layout == "empty val" else set()
        check_parts(layout, ready, said, right, views, sorted(names), left_out)


@for_all(12, layout=st.sampled_from(["numbers", "train and val", "codes", "llamagen"]),
         views=st.integers(1, 3), n=st.sampled_from([1, 4]), seed=numbers,
         kind=st.sampled_from(["uint16", "int64", ">u2", "int32"]))
def test_extracted_ids_are_kept_as_they_are(layout, views, n, seed, kind):
    """Ids are below 65,536. Class numbers have gaps. Files that hold other ids are left out.

    Broken if an id loses bits, if a label is another file's, if a file is in both parts or none.
    """
    rng, files, bad = np.random.default_rng(seed), {}, set()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        codes, labels = (("imagenet256_" if layout == "llamagen" else "") + name
                         for name in ("codes", "labels"))
        tops = ["train", "val"] if layout == "train and val" else [""]
        for top in tops:
            for label in (10, 2, 11):
                where = codes if layout in ("codes", "llamagen") else str(Path(top) / str(label))
                (root / where).mkdir(parents=True, exist_ok=True)
                inner = codes if where == codes else str(label)
                for i, name in enumerate(pick_names(rng, inner, int(rng.integers(2, 5)), ".npy")):
                    value = rng.integers(0, 65536, (views, n))
                    value.flat[0] = rng.choice([255, 256, 16383, 65535])
                    if i > 1 and rng.random() < 0.3:
                        value = value[:, :0] if seed % 2 else value.astype(float)
                        bad.add(f"{where}/{name}")
                    stored = value if value.dtype == float else value.astype(kind)
                    np.save(root / where / name, stored[None] if i % 2 else stored)
                    files[f"{where}/{name}"] = value, label
                    if where == codes:
                        (root / labels).mkdir(exist_ok=True)
                        np.save(root / labels / name, np.array([label]))
        walked = [str(f.relative_to(root)) for name in
                  ([codes] if layout in ("codes", "llamagen") else
                   [str(Path(top) / c) for top in tops for c in ("10", "11", "2")])
                  for f in sorted_walk(root / name)]
        if layout == "train and val":
            out = [f for f in walked if f.startswith("val")]
        else:
            out = held_out_by_hand(walked, {f: files[f][1] for f in walked}, set(walked))
        parts = [[f for f in walked if f not in out], [f for f in walked if f in out]]
        assume(all(set(part) - bad for part in parts))
        ready, said, _ = prepared(Path(folder), "--data", root)
        right = [[files[f] for f in part if f not in bad] for part in parts]
        left_out = [{str(root / f) for f in part if f in bad} for part in parts]
        for about in said:
            assert about["made_of"]["tokenizer"] == "", f"made by {about['made_of']}"
            about["made_of"]["views"] = {f"{views} as found": "center"}.get(
                about["made_of"]["views"], about["made_of"]["views"])
        check_parts(layout, ready, said, right, "center", [str(i) for i in range(12)], left_out)


@for_all(3, sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)), packed=st.booleans(),
         seed=numbers)
def test_fashion_mnists_parts_are_its_files(sizes, packed, seed):
    """Broken if a part reads the other's files, or if a grey value is not the same in all colours.
    """
    rng, sums, right = np.random.default_rng(seed), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for split, n in zip(("train", "t10k"), sizes):
            right[split] = (rng.integers(0, 256, (n, 28, 28)).astype(np.uint8),
                            rng.integers(0, 10, n).astype(np.uint8))
            for kind, array in zip(("images-idx3", "labels-idx1"), right[split]):
                name = f"{split}-{kind}-ubyte"
                raw = (bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
                       + array.tobytes())
                sums[name] = hashlib.sha256(raw).hexdigest()
                file = Path(folder) / (f"{name}.gz" if packed else name)
                file.write_bytes(gzip.compress(raw) if packed else raw)
        with patch.object(builtin, "FASHION_FILES", sums), \
                patch.object(builtin.find_fashion, "__defaults__",
                             (None, "", (Path(folder) / "none", Path(folder)))):
            for data in ("fashion-mnist", folder):
                parts = prepare.load_pictures({"data": data, "side": 32})
                for part, (images, labels) in zip(parts, right.values()):
                    same(f"{data}: pictures", part.images, np.stack([images] * 3, -1))
                    same(f"{data}: labels", part.labels, labels)
                    assert part.classes[9] == "ankle boot", f"class 9 is {part.classes[9]}"
    assert parts[0].fingerprint != parts[1].fingerprint, "the parts have the same fingerprint"


class Many(list):
    """A few files that stand for 200,000."""

    def __len__(self):
        return 200_000


@for_all(3, salt=numbers)
def test_one_file_in_twenty_is_due_or_one_in_two_hundred_of_many(salt):
    """By a checksum of its path. Broken if a new file changes what is due."""
    files = [folders.Listed(f"{salt}/{i}.png", 0, 1, 1) for i in range(2000)]
    marks = [int(hashlib.sha256(f.path.encode()).hexdigest()[:8], 16) for f in files]
    for listing, share in ((files, 20), (files[::2], 20), (Many(files), 200)):
        got, chosen = folders.due(listing)
        right = marks[::2] if listing is not files and share == 20 else marks
        same("checksums", got, right)
        same(f"due of {len(listing)}", chosen, [mark % share == 0 for mark in right])


@for_all(20, step=st.integers(0, 3), steps=st.integers(0, 3), side=st.integers(1, 9),
         stride=st.sampled_from([1, 2, 3]), views=st.sampled_from(VIEWS), folder=st.booleans())
def test_only_finished_tokenizers_and_sizes_that_fit_are_used(step, steps, side, stride, views,
                                                              folder):
    """A tokenizer that is trained to its last step; pictures of whole ids; ten crops of a folder.
    """
    run = {"tokenizer_file": "vq.pt", "views": views}
    with patch.object(checkpoint, "load_any_tokenizer",
                      lambda file: ("it", {"step": step, "steps": steps})):
        said = refusal(prepare.named_tokenizer, run, Path("none"))
    used = said == "it is accepted"
    assert used == (step >= steps), f"step {step} of {steps}: {said}"
    pictures = (folders.FolderPictures([], Path("x"), ["a"], side) if folder else
                builtin.Pictures(np.zeros((1, side, side, 3)), np.zeros(1), ["a"], ""))
    fits = side % stride == 0 and (folder or views != "ten-crop")
    said = refusal(prepare.check_sizes, run, pictures, stride)
    assert (said == "it is accepted") == fits, f"{side} by {stride}, {views}: {said}"
    if fits:
        n = prepare.check_sizes(run, pictures, stride)
        assert n * stride**2 == side**2, f"{n} ids of {stride}×{stride} pixels in {side}×{side}"


# Parts of the encoding, and what marks them.

class Codes(builtin.Pictures):
    """Pictures whose ids are known. Picture i is the number i. Some can't be read."""

    def __init__(self, labels: np.ndarray, broken: set[int]):
        super().__init__(np.arange(len(labels)), labels, ["all"], "codes")
        self.broken, self.left_out = broken, {"stray": "not in a folder"}

    def load(self, indices, side=0):
        self.bad |= {self.name(i): f"torn at {i}" for i in indices if i in self.broken}
        kept = np.array([i for i in indices if i not in self.broken], np.int64)
        return kept, kept


@for_all(25, n=st.integers(1, 20), part=st.integers(1, 7), views=st.integers(1, 3),
         broken=st.sets(st.integers(0, 20)), seed=numbers,
         starts=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), max_size=2),
         last=st.integers(1, 4), stale=st.integers(0, 2))
def test_parts_joined_are_everything_encoded_at_once(n, part, views, broken, seed, starts, last,
                                                     stale):
    """Some parts lie there that another tokenizer made. Encoding starts in some processes, which
    end after some parts each. It starts again in another number of processes. Finally the parts are
    joined.

    Broken if a part is lost, changes place or is encoded twice, if an id loses bits, if labels
    shift where a picture is bad, or if a bad picture is not named.
    """
    rng, encoded = np.random.default_rng(seed), []
    codes = rng.choice([0, 255, 256, 16383, 65535, 40000], (n, views, 3))
    labels, made_of = rng.integers(0, 70_000, n), {"pictures": "p", "views": "v", "tokenizer": ""}
    good = [i for i in range(n) if i not in broken]

    def encode(items):
        encoded.extend(map(int, items))
        return codes[items]

    with tempfile.TemporaryDirectory() as folder, patch.object(ids, "PART", part), \
            patch.object(os, "fsync", lambda file: None):
        stem, source = Path(folder) / "train", Codes(labels, broken)
        others = ids.encode_parts(source, source.load, lambda items: codes[items] ^ 1, stem,
                                  made_of | {"tokenizer": "another"})
        for _ in zip(range(stale), others):
            pass
        for world, stop in [*starts, (last, n)]:
            for rank in range(world):
                source = Codes(labels, broken)
                shares = ids.encode_parts(source, source.load, encode, stem, made_of, rank, world)
                got = [share for _, share in zip(range(stop), shares)]
                assert got == sorted(set(got)), f"shares {got}"
                assert stop < n or not got or got[-1] == 1, f"it ends at {got[-1]:.0%}"
        assert sorted(encoded) == good, f"pictures {sorted(encoded)} were encoded, not {good}"
        if not good:
            said = refusal(ids.put_together, source, stem, made_of)
            assert f"none of {n} pictures" in said, f"without a picture it says: {said}"
            return
        said = ids.put_together(Codes(labels, broken), stem, made_of)
        made = ids.Ids(stem)
        same("ids", made.ids, codes[good])
        same("labels", made.labels, labels[good])
        left_out = {"stray": "not in a folder"} | {f"picture {i}": f"torn at {i}"
                                                   for i in sorted(broken) if i < n}
        about = said["left_out"], said["pictures"], said["classes"], said["made_of"]
        assert about == (left_out, len(good), ["all"], made_of), f"it is described by {about}"
        assert ids.verified(stem) == said, "what is stored is not what is returned"
        names = {p.name for p in Path(folder).iterdir()}
        assert names == {"train.npy", "train.labels.npy", "train.json"}, f"left behind: {names}"


@for_all(6, world=st.integers(1, 4), n=st.integers(1, 20), seed=numbers)
def test_several_processes_encode_each_picture_once(world, n, seed):
    """Broken if every process encodes everything, or if the first joins parts before all are done.
    """
    codes, encoded, at = noise(seed, n, 3)[..., 0], [], 0

    def from_first(work):
        return {"left_out": {}} if at else work()

    class All(ids.IdFiles):
        def __init__(self):
            builtin.Pictures.__init__(self, codes, np.arange(n), ["all"], "codes")
            self.sizes = 1, 3

        def load(self, indices, side=0):
            encoded.extend(indices)
            return np.array(indices), codes[list(indices), None]

    with (tempfile.TemporaryDirectory() as folder, quiet(), patch.object(ids, "PART", 3),
          patch.multiple(processes, rank=lambda: at, world=lambda: world, barrier=lambda: None,
                         from_first=from_first)):
        stem = Path(folder) / "ids" / "train"
        for at in reversed(range(world)):
            prepare.encode_all({"views": "center", "side": 4}, All(), stem, wide_tokenizer()[0],
                               processes.Stop(()), CPU)
        assert sorted(encoded) == list(range(n)), f"{sorted(encoded)} were encoded"
        same("ids", ids.Ids(stem).ids[:, 0], codes)


listed = st.builds(folders.Listed, st.sampled_from(["a/1", "b/2", "c"]), *[st.integers(0, 1)] * 3)
CHANGES = ("nothing", "path", "label", "size", "changed", "order", "number", "side", "place")


@for_all(40, files=st.lists(listed, min_size=1, max_size=3), change=st.sampled_from(CHANGES),
         at=st.integers(0, 2))
def test_a_fingerprint_changes_when_and_only_when_its_files_do(files, change, at):
    """Files are the same if their paths, classes, sizes and times are, in the same order. How large
    the pictures become counts as well, but not where the folder lies."""
    other, at = list(files), at % len(files)
    if change in folders.Listed._fields:
        other[at] = other[at]._replace(**{change: "d/1" if change == "path" else 7})
    elif change in ("order", "number"):
        other = other[::-1] if change == "order" else [*other, other[0]]
    first, second = (folders.FolderPictures(listing, Path(place), ["a", "b"], side).fingerprint
                     for listing, place, side in (
                         (files, "x", 4), (other, "y" if change == "place" else "x",
                                           5 if change == "side" else 4)))
    alike = other == files and change != "side"
    assert (first == second) == alike, f"{change}: {'the same' if first == second else 'another'}"


made_of = st.dictionaries(st.sampled_from("pvt"), st.sampled_from(["1", "2"]))


@for_all(30, a=made_of, b=made_of)
def test_a_mark_changes_when_and_only_when_what_it_names_does(a, b):
    """A part's mark is of everything that made it, in any order."""
    alike = ids.mark_of(a) == ids.mark_of(b)
    assert alike == (a == b), f"{'the same mark' if alike else 'marks'} of {a} and {b}"
    assert ids.mark_of(a) == ids.mark_of(dict(reversed(a.items()))), f"the order of {a} counts"


@for_all(20, seed=numbers,
         change=st.sampled_from(["nothing", "weight", "buffer", "name", "swap"]))
def test_a_tokenizers_fingerprint_is_of_all_tensors_and_their_names(seed, change):
    def module():
        torch.manual_seed(seed)
        made = torch.nn.Module()
        for name in ("first", "second"):
            made.register_parameter(name, torch.nn.Parameter(torch.randn(2, 3)))
        made.register_buffer("idle", torch.zeros(2))
        return made

    one, two = module(), module()
    with torch.no_grad():
        if change == "weight":
            two.second[1, 2] = two.second[1, 2].nextafter(torch.tensor(9.0))
        if change == "buffer":
            two.idle[1] = 1
        if change == "swap":
            two.first, two.second = two.second, two.first
        if change == "name":
            two.third = two.second
            del two.second
    marks = [checkpoint.fingerprint(m) for m in (one, two)]
    alike = marks[0] == marks[1]
    assert alike == (change == "nothing"), f"{change} changes: fingerprints {marks}"


@for_all(6, damage=st.sampled_from(["nothing", "train.npy", "val.labels.npy", "val.json",
                                    "tokenizer.pt", "train.labels.npy"]), seed=st.integers(0, 9))
def test_ids_are_made_again_when_and_only_when_they_changed(damage, seed):
    """A run is resumed after a file has changed. Then another run takes its ids.

    Broken if ids of another tokenizer, or damaged ones, are trained on, or if good ones are made
    again.
    """
    encoded = []

    def encode(self, images):
        encoded.append(len(images))
        return hashed(self, images)

    with tempfile.TemporaryDirectory() as folder:
        place, root = Path(folder), Path(folder) / "data"
        for name in "ab":
            (root / name).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(noise(seed + i, 5, 5)).save(root / name / f"{i}.png")
        flags = "--data", root, "--side", 4
        ready, said, _ = prepared(place, *flags, encode=encode)
        before = np.array(ready.ids.ids), np.array(ready.held_out.ids)
        assert sum(encoded) == 2 * len(ready.ids) + len(ready.held_out), f"{encoded} were encoded"
        encoded.clear()
        if damage == "tokenizer.pt":
            torch.manual_seed(1)
            checkpoint.save_tokenizer(place / "run" / damage, VQTokenizer(WIDE))
        elif damage != "nothing":
            file = place / "run" / "ids" / damage
            raw = bytearray(file.read_bytes())
            raw[-1] ^= 1
            file.write_bytes(raw)
        again, described, _ = prepared(place, *flags, "--resume", encode=encode)
        assert bool(encoded) == (damage != "nothing"), f"after a change of {damage}: {encoded}"
        for made, right in zip((again.ids, again.held_out), before):
            same(f"ids after a change of {damage}", made.ids, right)
        tokenizer = checkpoint.fingerprint(again.tokenizer)
        assert described[0]["made_of"]["tokenizer"] == tokenizer, "ids of another tokenizer"
        encoded.clear()
        (place / "other").mkdir()
        other = place / "other", "--data", place / "run", "--control", "edges"
        if damage == "tokenizer.pt":
            said = refusal(prepared, *other, encode=encode)
            assert "must be the one that encoded the ids" in said, f"another tokenizer: {said}"
            return
        taken, about, _ = prepared(*other, encode=encode)
        assert not encoded, f"the other run encodes {encoded} pictures"
        assert about == described, "the other run describes its ids otherwise"
        for made, right in zip((taken.ids, taken.held_out), before):
            same("ids of another run", made.ids, right)
        strides = again.model.control_stride, taken.model.control_stride
        assert strides == (0, WIDE.stride), f"control strides {strides}"


def test_built_in_pictures_keep_their_size_whatever_the_side():
    """--side is for pictures from a folder. Broken if their middle is cut out: then a picture has
    fewer ids than the model's grid."""
    real = builtin.shapes_pictures
    with (tempfile.TemporaryDirectory() as folder,
          patch.object(builtin, "shapes_pictures", lambda count, seed: real(20, seed))):
        ready, _, _ = prepared(Path(folder), "--data", "shapes", "--side", 16)
    assert ready.ids.ids.shape[2] == math.prod(ready.model.grid), "ids of a picture, and its grid"
