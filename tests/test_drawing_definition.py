"""What `sample_mini.py` draws and edits equals its definition, flag by flag.

`tests/test_editing.py` defines the parts: known ids, their completion, pixels, the composite. Here
are pictures of any size, the flags, and the files.
"""

import math
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

import sample_mini
from arpg_mini import ModelConfig, TokenizerConfig, editing
from arpg_mini.config import GUIDANCE_SCHEDULES, ORDERS, POSITIONS, SCHEDULES, WITHIN_STEP
from arpg_mini.control import edges
from arpg_mini.data import images
from arpg_mini.run import checkpoint, retouch
from arpg_mini.run.drawing import Drawer
from arpg_mini.run.request import settle
from tests.helpers import tiny_model
from tests.strategies import for_all

CPU, GRID, NAMES = torch.device("cpu"), (3, 4), ["a", "b", "c"]
SMALL = dict(grid=GRID, dim=16, heads=2, content_layers=1, query_layers=1, ffn_hidden=8)
METHODS = ("windows", *POSITIONS)


class Palette:
    """A tokenizer of 2×2 pixels, whose eleven ids are colours."""

    config = TokenizerConfig(multipliers=(1, 1), codebook_size=11)
    table = torch.from_numpy(np.random.default_rng(3).random((11, 3)) * 2 - 1).float()

    def to(self, device) -> "Palette":
        return self

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        cells = F.avg_pool2d(pictures, 2).permute(0, 2, 3, 1)
        return torch.cdist(cells.flatten(0, 2), self.table).argmin(1).view(cells.shape[:3])

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        colours = self.table[ids].permute(0, 3, 1, 2)
        return colours.repeat_interleave(2, 2).repeat_interleave(2, 3)


def scaled(pixels: np.ndarray) -> torch.Tensor:
    """(height, width, 3) of 0 to 255 -> (1, 3, height, width) of -1 to 1."""
    return torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1)[None]) / 127.5 - 1


def levels(pictures: torch.Tensor) -> np.ndarray:
    """The reverse, of several pictures."""
    return ((pictures + 1) * 127.5).round().clamp(0, 255).byte().numpy().transpose(0, 2, 3, 1)


def near(where: str, got: np.ndarray, right: np.ndarray) -> None:
    """Equal pictures. A rounding error may move a number across a half, so by one."""
    __tracebackhide__ = True
    assert got.shape == right.shape, f"{where}: {got.shape}, by definition {right.shape}"
    apart = np.abs(got.astype(int) - right)
    at = tuple(map(int, np.unravel_index(apart.argmax(), apart.shape)))
    assert apart.max() <= 1 and (apart > 0).mean() < 0.01, \
        f"{where}, at {at}: {got[at]}, by definition {right[at]}"


class Fitted:
    """A picture to edit: at the model's size and at its own, with masks, and its known ids."""

    def __init__(self, picture: np.ndarray, hidden: np.ndarray | None, grid=None, at=None):
        sides = height, width = picture.shape[:2]
        # The shorter side gets the model's three tokens, the other one its share of them.
        h, w = (max(3, round(n * 3 / min(sides))) for n in sides)
        pixels = picture.copy()
        if hidden is not None:
            seen = picture[~hidden]
            pixels[hidden] = seen.mean(0).astype(np.uint8) if len(seen) else 128
        small = Image.fromarray(pixels).resize((2 * w, 2 * h), Image.Resampling.LANCZOS)
        self.small, self.whole = scaled(np.asarray(small)), scaled(picture)
        if hidden is not None:
            self.small_mask = torch.tensor([[[any(
                hidden[y, x] for y in range(height) for x in range(width)
                if y * 2 * h < (i + 1) * height and (y + 1) * 2 * h > i * height
                and x * 2 * w < (j + 1) * width and (x + 1) * 2 * w > j * width)
                for j in range(2 * w)] for i in range(2 * h)]])
            self.known = editing.known_ids(Palette(), self.small, self.small_mask)
            self.mask = torch.from_numpy(hidden)[None]
            return
        row, column = at or ((grid[0] - h) // 2, (grid[1] - w) // 2)
        self.known, self.small, self.small_mask = editing.place(Palette(), self.small, grid,
                                                                (row, column))
        top, left = round(row * height / h), round(column * width / w)
        size = (max(top + height, round(grid[0] * height / h)),
                max(left + width, round(grid[1] * width / w)))
        inner = np.s_[..., top:top + height, left:left + width]
        canvas, self.mask = torch.zeros(1, 3, *size), torch.ones(1, *size, dtype=torch.bool)
        canvas[inner], self.mask[inner] = self.whole, False
        self.whole = canvas

    def result(self, ids: torch.Tensor, feather: int) -> np.ndarray:
        made = editing.to_pixels(Palette(), ids[None], GRID)
        if self.whole.shape != self.small.shape:
            made = F.interpolate(made, self.whole.shape[2:], mode="bicubic", antialias=True)
        return levels(editing.composite(self.whole, made.clamp(-1, 1), self.mask, feather))[0]

    def frame(self, ids: torch.Tensor) -> np.ndarray:
        """At the model's size, grey where nothing is drawn yet."""
        made = editing.to_pixels(Palette(), ids.clamp(min=0)[None], GRID)
        unknown = (ids < 0).repeat_interleave(2, 0).repeat_interleave(2, 1)
        made = scaled(np.where(unknown[..., None], 128, levels(made)[0]))
        return levels(editing.composite(self.small, made, self.small_mask))[0]


def panels(sheet: Image.Image, size: tuple[int, int], count: int, columns: int) -> list[np.ndarray]:
    """The pictures of a sheet: row by row, two white pixels apart, small ones enlarged."""
    zoom, pixels = max(1, 64 // max(size)), np.asarray(sheet)
    (h, w), rows = (zoom * n for n in size), math.ceil(count / columns)
    expected = rows * (h + 2) - 2, columns * (w + 2) - 2
    assert pixels.shape[:2] == expected, f"a sheet of {pixels.shape[:2]}, not {expected}"
    found = []
    for i in range(count):
        y, x = i // columns * (h + 2), i % columns * (w + 2)
        found.append(pixels[y:y + h:zoom, x:x + w:zoom])
        assert (pixels[y + h:y + h + 2, x:x + w] == 255).all(), "no gap below a picture"
    return found


edits = st.fixed_dictionaries(dict(
    job=st.sampled_from(["inpaint", "edit", "outpaint"]),
    size=st.sampled_from([(9, 14), (13, 7), (6, 8), (8, 6), (4, 5), (7, 7)]),
    box=st.booleans(), share=st.sampled_from([0.2, 0.03, 0.7, 1.0]), count=st.sampled_from(
        [None, 1, 2, 3, 9]), classes=st.sampled_from([None, [2], [1, 0], [0, 2, 1]]),
    was=st.sampled_from([None, [0], [1, 2]]), feather=st.integers(0, 3),
    first=st.integers(0, 2**40), extra=st.tuples(*[st.integers(0, 2)] * 2), at=st.booleans(),
    gif=st.booleans(), columns=st.sampled_from([None, 2]), order=st.sampled_from(ORDERS),
    positions=st.sampled_from(METHODS), seed=st.integers(0, 999)))


def flags_of(case: dict, folder: Path, rng) -> tuple[list[str], np.ndarray, np.ndarray | None]:
    """Write the picture and its mask; return the flags, the pixels, and which are hidden."""
    (height, width), job = case["size"], case["job"]
    picture = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(picture).save(folder / "p.png")
    flags, hidden = [f"--{job}", folder / "p.png"], None
    if job != "outpaint" and case["box"]:
        y, x = (sorted(rng.choice(n + 1, 2, replace=False)) for n in (height, width))
        hidden = np.zeros((height, width), bool)
        hidden[y[0]:y[1], x[0]:x[1]] = True
        flags += ["--box", f"{x[0]},{y[0]},{x[1]},{y[1]}"]
    elif job != "outpaint":
        light = rng.choice([0, 127, 128, 255], (height, width), p=[
            (1 - case["share"]) / 2] * 2 + [case["share"] / 2] * 2).astype(np.uint8)
        light[rng.integers(height), rng.integers(width)] = 128
        hidden = light >= 128
        Image.fromarray(light).save(folder / "m.png")
        flags += ["--mask", folder / "m.png"]
    for name in ("count", "columns", "feather"):
        if case[name] is not None:
            flags += [f"--{name}", case[name]]
    return flags + ["--seed", case["first"], "--out", folder / "x.png"], picture, hidden


@for_all(25, case=edits)
def test_an_edited_picture_is_its_definition(case):
    """All results, the strip of what is known and of the results, and the animation. Outside the
    mask every pixel of a result is the picture's, at the place that --at names.

    Broken if a flag is ignored, the result is shifted, or a picture lies on its side.
    """
    rng, job = np.random.default_rng(case["seed"]), case["job"]
    classes = case["classes"] or ([1] if job == "edit" else None)
    was = case["was"] if job == "edit" else None
    tokens = [max(3, round(n * 3 / min(case["size"]))) for n in case["size"]]
    grid = [n + more for n, more in zip(tokens, case["extra"])] if job == "outpaint" else None
    at = [int(rng.integers(0, n + 1)) for n in case["extra"]] if grid and case["at"] else None
    drawer = Drawer(tiny_model(**SMALL), Palette(), NAMES, dict(
        steps=4, guidance=3.0, order=case["order"], positions=case["positions"]))
    saved = []
    with tempfile.TemporaryDirectory() as name, redirect_stdout(StringIO()) as said, \
            patch.object(images, "save_gif", lambda path, frames: saved.extend(frames)):
        folder = Path(name)
        flags, picture, hidden = flags_of(case, folder, rng)
        for flag, value in (("classes", classes), ("was", was), ("at", at)):
            flags += [f"--{flag}", ",".join(map(str, value))] if value else []
        flags += ["--grid", f"{grid[0]}x{grid[1]}"] if grid else []
        flags += ["--gif", folder / "x.gif"] if case["gif"] else []
        flags += ["--guidance", 1] if classes is None and case["at"] else []    # allowed
        options = sample_mini.parse([name, *map(str, flags)])
        sample_mini.check(options)
        settle(options, NAMES)
        retouch.edit(drawer, options, CPU)
        n = case["count"] or len(classes or [0])
        files = [folder / (f"x-{i + 1}.png" if n > 1 else "x.png") for i in range(n)]
        expected = {f.name for f in files} | {"x-strip.png", "p.png"}
        written = {f.name for f in folder.iterdir()} - {"m.png"}
        assert written == expected, f"files {sorted(written)}, not {sorted(expected)}"
        results = [np.asarray(Image.open(file)) for file in files]
        strip = Image.open(folder / "x-strip.png").copy()
    lines = [str(f) for f in files] + [f"{folder / 'x-strip.png'}: what is known, then the results"]
    lines += [str(folder / "x.gif")] * case["gif"]
    assert said.getvalue().splitlines() == lines, f"prints {said.getvalue()}"

    fitted = Fitted(picture, hidden, grid, at)
    how = dict(steps=4, guidance=3.0 if classes else 1.0, order=case["order"],
               positions=case["positions"],
               against=was and [was[i % len(was)] for i in range(n)])
    labels = [classes[i % len(classes)] if classes else 3 for i in range(n)]
    states = [ids.clone() for ids in editing.complete_steps(
        drawer.model, fitted.known.expand(n, -1, -1), labels,
        [case["first"] + i for i in range(n)], **how)]
    outside = ~fitted.mask[0].numpy()
    original = levels(fitted.whole)[0]
    for i, result in enumerate(results):
        near(f"result {i}", result, fitted.result(states[-1][i], case["feather"]))
        kept = (result[outside] == original[outside]).all()
        assert kept, f"result {i}: a pixel outside the mask has changed"
    shown = panels(strip, result.shape[:2], n + 1, n + 1 if n <= 8 else math.ceil(math.sqrt(n + 1)))
    known = np.where(outside[..., None], original, 128)
    for i, (panel, right) in enumerate(zip(shown, [known, *results])):
        assert (panel == right).all(), f"picture {i} of the strip is another"
    if not case["gif"]:
        assert not saved, "an animation without --gif"
        return
    states = [fitted.known.expand(n, -1, -1), *states]
    assert len(saved) == len(states), f"{len(saved)} frames, not {len(states)}"
    for step, (frame, ids) in enumerate(zip(saved, states)):
        small = panels(frame, tuple(fitted.small.shape[2:]), n, min(n, case["columns"] or 10))
        for i, panel in enumerate(small):
            near(f"frame {step}, picture {i}", panel, fitted.frame(ids[i]))


draws = st.fixed_dictionaries(dict(
    flags=st.fixed_dictionaries({
        "--classes": st.sampled_from([None, "2", "b,a"]), "--count": st.sampled_from([5, 2]),
        "--steps": st.sampled_from([None, 5, 2]), "--order": st.sampled_from(ORDERS),
        "--guidance": st.sampled_from([None, 4.0, 1.0]), "--positions": st.sampled_from(METHODS),
        "--guidance-schedule": st.sampled_from([None, *GUIDANCE_SCHEDULES]),
        "--schedule": st.sampled_from([None, *SCHEDULES]),
        "--temperature": st.sampled_from([None, 0.4]), "--top-k": st.sampled_from([None, 2]),
        "--top-p": st.sampled_from([None, 0.4]), "--seed": st.sampled_from([0, 7, 2**40]),
        "--within-step": st.sampled_from([None, *WITHIN_STEP]),
        "--weights": st.sampled_from([None, "model"])}),
    size=st.sampled_from([[], ["--grid", "2x7"], ["--expand", "2"], ["--grid", "5x4"]]),
    control=st.sampled_from([None, (2, 3), (15, 20), (3, 2), (8, 6)]), seed=st.integers(0, 99)))


@for_all(16, case=draws)
def test_drawn_pictures_are_those_of_the_flags(case):
    """Picture i has the seed `--seed` + i and the i-th class in turn. All settings are the flags',
    or else the run's. A control's edges are those of the picture at the size of the result; where
    it had to be enlarged, they are as steep as before.
    """
    flags = {k: v for k, v in case["flags"].items() if v is not None}
    sizes = SMALL | dict(control_stride=2 if case["control"] else 0)
    newest, average = (tiny_model(torch.float32, seed=case["seed"] + i, **sizes) for i in (0, 1))
    config = vars(ModelConfig(**sizes, vocab_size=11, num_classes=3, dropout=0.0))
    rng = np.random.default_rng(case["seed"])
    with tempfile.TemporaryDirectory() as name, redirect_stdout(StringIO()), \
            patch.object(checkpoint, "load_tokenizer", lambda path: (Palette(), {})):
        folder = Path(name)
        checkpoint.save(folder / "model.pt", "model", config=config, model=newest.state_dict(),
                        ema=average.state_dict(), classes=NAMES, guidance=2.5,
                        guidance_schedule="constant")
        more = [*case["size"], "--npz", str(folder / "x.npz")]
        if case["control"]:
            picture = rng.integers(0, 256, (*case["control"], 3)).astype(np.uint8)
            Image.fromarray(picture).save(folder / "p.png")
            more += ["--control", str(folder / "p.png")]
        options = sample_mini.parse([name, *map(str, sum(flags.items(), ())), *more])
        sample_mini.check(options)
        sample_mini.work(options, CPU)
        with np.load(folder / "x.npz") as file:
            made, classes, seed = file["arr_0"], file["arr_1"].tolist(), file["seed"].item()
    count = flags["--count"]
    turn = {None: [0, 1, 2], "2": [2], "b,a": [1, 0]}[flags.get("--classes")]
    labels = [turn[i % len(turn)] for i in range(count)]
    assert (classes, seed) == (labels, flags["--seed"]), f"classes {classes}, seed {seed}"
    grid = {"2x7": (2, 7), "2": (6, 8), "5x4": (5, 4)}[case["size"][1]] if case["size"] else GRID
    how = dict(steps=flags.get("--steps", 3), order=flags["--order"], top_k=flags.get("--top-k", 0),
               guidance=flags.get("--guidance", 2.5), positions=flags["--positions"],
               guidance_schedule=flags.get("--guidance-schedule", "constant"),
               schedule=flags.get("--schedule", "arccos"), top_p=flags.get("--top-p", 1.0),
               temperature=flags.get("--temperature", 1.0),
               within_step=flags.get("--within-step", "block"))
    if case["control"]:
        height, width = (2 * n for n in grid)
        larger = scaled(np.asarray(Image.fromarray(picture).resize((width, height))))
        steeper = max(1, min(height, width) / min(case["control"]))
        how["control"] = (edges(larger) * steeper).clamp(max=1)
    model = newest if flags.get("--weights") == "model" else average
    ids = editing.complete(model, torch.full((count, *grid), -1), labels,
                           [flags["--seed"] + i for i in range(count)], **how)
    for i, right in enumerate(levels(editing.to_pixels(Palette(), ids, GRID))):
        near(f"picture {i}", made[i], right)
    assert len(made) == count, f"{len(made)} pictures, not {count}"
