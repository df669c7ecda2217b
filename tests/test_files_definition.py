"""What is written reads back: pictures, animations, arrays, checkpoints; whole, whatever happens.
And what is drawn equals its definition: each picture is decoded alone."""

import contextlib
import io
import math
import os
import tempfile
from argparse import Namespace
from dataclasses import asdict
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from arpg_mini import TokenizerConfig, VQTokenizer, pretrained
from arpg_mini.data import files, images
from arpg_mini.editing import complete_steps
from arpg_mini.run import checkpoint, drawing, export, processes
from arpg_mini.tokenizer import to_device
from tests.helpers import tiny_model
from tests.strategies import for_all
from tests.test_data_definition import CPU, WIDE, noise, numbers, refusal, same
from tests.test_run_definition import Colours, default

# Pictures out.

@for_all(30, values=st.lists(st.floats(-1.3, 1.3), min_size=3, max_size=3), seed=numbers,
         size=st.tuples(*[st.integers(1, 3)] * 3))
def test_colours_are_rounded_to_the_nearest_of_256(values, seed, size):
    n, height, width = size
    tensor = torch.rand(n, 3, height, width, dtype=torch.float64) * 2.2 - 1.1
    tensor[0, :, 0, 0] = torch.tensor(values, dtype=torch.float64)
    got = images.to_uint8(tensor)
    right = np.array([[[[min(255, max(0, round((float(tensor[i, c, y, x]) + 1) * 127.5)))
                         for c in range(3)] for x in range(width)] for y in range(height)]
                      for i in range(n)])
    same("pixels", got, right)
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    tensor = to_device(every, CPU)
    assert (tensor.min(), tensor.max()) == (-1, 1), f"{tensor.min()} to {tensor.max()}"
    same("all 256 values, there and back", images.to_uint8(tensor), every)


def grid_by_hand(pictures: np.ndarray, columns: int, zoom: int, gap: int) -> np.ndarray:
    """Picture i stands in row i // columns and column i % columns, each pixel zoom × zoom large."""
    n, h, w = (len(pictures), *(zoom * s for s in pictures.shape[1:3]))
    sheet = np.full((math.ceil(n / columns) * (h + gap) - gap, columns * (w + gap) - gap, 3), 255)
    for i in range(n):
        for y in range(h):
            for x in range(w):
                sheet[i // columns * (h + gap) + y, i % columns * (w + gap) + x] = \
                    pictures[i, y // zoom, x // zoom]
    return sheet


@for_all(30, n=st.integers(1, 7), size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
         columns=st.integers(1, 5), zoom=st.integers(1, 3), gap=st.integers(0, 2), seed=numbers)
def test_a_grid_is_filled_row_by_row(n, size, columns, zoom, gap, seed):
    """Broken if pictures change places, are turned, or overlap. A PNG of the grid reads back."""
    pictures = noise(seed, n, *size)
    right = grid_by_hand(pictures, columns, zoom, gap)
    sheet = images.grid(pictures, columns, zoom, gap)
    same("pixels", sheet, right)
    with tempfile.TemporaryDirectory() as folder:
        images.save_png(Path(folder) / "x.png", sheet)
        with Image.open(Path(folder) / "x.png") as file:
            assert file.format == "PNG", f"a file of format {file.format}"
            same("pixels of the file", file, right)
    rows = [sheet, images.grid(pictures[:1], 1, zoom, gap)]
    lines = np.asarray(images.captioned(rows, ["1", "2"], margin=30))
    top = 0
    for row in map(np.asarray, rows):
        same("a row with a caption", lines[top:top + len(row), 30:30 + row.shape[1]], row)
        assert (lines[top:top + len(row) + 4, :30] < 255).any() or len(row) < 12, "no caption"
        top += len(row) + 4


@for_all(30, n=st.integers(1, 3), h=st.integers(1, 3), w=st.integers(1, 3),
         stride=st.integers(1, 3), seed=numbers)
def test_cells_of_unknown_tokens_are_grey_and_no_others(n, h, w, stride, seed):
    pictures = noise(seed, n, h * stride, w * stride)
    known = np.random.default_rng(seed).random((n, h, w)) < 0.5
    right = [[[pictures[i, y, x] if known[i, y // stride, x // stride] else [128] * 3
               for x in range(w * stride)] for y in range(h * stride)] for i in range(n)]
    same("pixels", images.cover_unknown(pictures, known), right)


@for_all(20, count=st.integers(1, 6), tens=st.integers(1, 30), seed=numbers)
def test_an_animation_shows_its_frames_in_order_and_the_last_one_longer(count, tens, seed):
    """Broken if frames are reversed, lost or shown for another time, or if it ends."""
    rng = np.random.default_rng(seed)
    frames = [np.full((3, 5, 3), 0, np.uint8) for _ in range(count)]
    for i, frame in enumerate(frames):
        frame[:, :] = rng.integers(0, 256, 3)
        frame[0, 0] = i, 100, 200                          # no two are equal
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.gif"
        images.save_gif(path, [Image.fromarray(f) for f in frames], 10 * tens)
        with Image.open(path) as file:
            assert getattr(file, "n_frames", 1) == count, f"{file.n_frames} frames, not {count}"
            assert file.info.get("loop") == 0 or count == 1, "it ends"
            for i in range(count):
                file.seek(i)
                same(f"frame {i}", file.convert("RGB"), frames[i])
                right = 10 * tens * (10 if i == count - 1 else 1)
                # Pillow stores no time for a picture that does not move.
                assert count == 1 or file.info["duration"] == right, \
                    f"frame {i} is shown for {file.info['duration']} ms, not {right}"


@for_all(25, sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), batch=st.integers(1, 6),
         size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
         seed=st.sampled_from([0, 7, 2**31, 2**32 + 1, 2**62]),
         wrong=st.sampled_from(["", "", "more", "fewer"]))
def test_arrays_of_pictures_read_back(sizes, batch, size, seed, wrong):
    """By NumPy and by this package, which never holds all of them. Broken if a picture is lost or
    changes place, if a class or the seed loses bits, or if a wrong number of pictures is written.
    """
    n = sum(sizes)
    pictures, labels = noise(seed % 2**32, n, *size), np.arange(n) * 70_000
    told = n + {"": 0, "more": 1, "fewer": -1}[wrong]
    parts = iter(np.split(pictures, np.cumsum(sizes)[:-1]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npz"
        if wrong:
            said = refusal(images.save_npz, path, parts, (told, *size, 3), labels, seed)
            assert said == f"{n} images came, {told} were expected", f"{told} for {n}: {said}"
            assert os.listdir(folder) == [], f"left behind: {os.listdir(folder)}"
            return
        images.save_npz(path, parts, (n, *size, 3), labels, seed)
        with np.load(path) as file:
            assert set(file) == {"arr_0", "arr_1", "seed"}, f"it holds {set(file)}"
            kinds = [file[name].dtype.str for name in file]
            assert kinds == ["|u1", "<i8", "<i8"], f"numbers of the kinds {kinds}"
            same("pictures", file["arr_0"], pictures)
            assert file["arr_1"].tolist() == labels.tolist(), f"classes {file['arr_1'].tolist()}"
            assert file["seed"].item() == seed, f"seed {file['seed']}, not {seed}"
        read = list(images.pictures(path, batch))
        same("pictures, in batches", np.concatenate(read), pictures)
        assert [len(b) for b in read[:-1]] == [batch] * (len(read) - 1), "batches of another size"
        same("classes", images.array(path, "arr_1", (n,), "i"), labels)
        with images.open_pictures(path) as (_, shape):
            assert shape == (n, *size, 3), f"{shape}"


# Files that are whole.

OLD, NEW = b"old" * 50, b"new content" * 1000


@for_all(40, old=st.booleans(), ends=st.sampled_from(["well", "early", "sync", "rename", "killed"]),
         at=st.sampled_from([0, 1, 5000, len(NEW) - 1, len(NEW)]))
def test_a_file_is_written_whole_or_not_at_all(old, ends, at):
    """Writing ends early, the disk refuses to keep or to rename the file, or the process is killed.
    Then the old file is as it was. A file is on the disk before it has its name.

    Broken if it is written under its own name, not flushed, or left behind.
    """
    steps: list[str] = []

    def write(file):
        file.write(NEW[:at])
        if ends == "early":
            raise OSError("No space left")
        if ends == "killed":
            file.flush()
            os._exit(9)
        file.write(NEW[at:])

    def fsync(number):
        steps.append(f"kept {os.fstat(number).st_size}")
        if ends == "sync":
            raise OSError("no")

    def replace(part, path):
        steps.append(f"named {Path(path).name}")
        if ends == "rename":
            raise OSError("no")
        rename(part, path)

    rename = os.replace
    with tempfile.TemporaryDirectory() as folder, patch.object(os, "fsync", fsync), \
            patch.object(os, "replace", replace):
        path = Path(folder) / "x.npy"
        if old:
            path.write_bytes(OLD)
        if ends == "killed":
            if (child := os.fork()) == 0:
                files.write_whole(path, write)
                os._exit(1)
            os.waitpid(child, 0)
            (Path(folder) / "y.part.npy").write_bytes(OLD)
            files.sweep(Path(folder))
        elif ends == "well":
            files.write_whole(path, write)
            assert steps == [f"kept {len(NEW)}", "named x.npy"], f"in this order: {steps}"
        else:
            said = refusal(files.write_whole, path, write)
            assert "x.npy: can't be written" in said, f"it ends {ends}: {said}"
        right = NEW if ends == "well" else OLD if old else None
        found = path.read_bytes() if path.exists() else None
        assert found == right, (f"it ends {ends} after {at} bytes and leaves "
                                f"{'nothing' if found is None else f'{len(found)} bytes'}")
        left = set(os.listdir(folder)) - {"x.npy"}
        assert left == ({"y.part.npy"} if ends == "killed" else set()), f"left behind: {left}"


@for_all(20, links=st.booleans(), other=st.booleans(), seed=numbers)
def test_a_second_name_keeps_its_content(links, other, seed):
    """By a link or by a copy. Broken if the other name shows what is written later."""
    def refuse(*names):
        raise OSError("no links here")

    with tempfile.TemporaryDirectory() as folder, \
            patch.object(os, "link", os.link if links else refuse):
        a, b = Path(folder) / "a", Path(folder) / "b"
        a.write_bytes(OLD)
        if other:
            b.write_bytes(NEW)
        for _ in range(2):                                 # the second time both are the same file
            files.also_as(a, b)
            assert b.read_bytes() == OLD, f"{len(b.read_bytes())} bytes under the second name"
        files.write_whole(a, lambda file: file.write(NEW))
        assert (a.read_bytes(), b.read_bytes()) == (NEW, OLD), "both names show the new content"
        assert sorted(os.listdir(folder)) == ["a", "b"], f"left behind: {os.listdir(folder)}"


# Checkpoints.

@for_all(12, losses=st.lists(st.integers(1, 5), min_size=1, max_size=7), keep=st.integers(1, 3),
         damaged=st.sets(st.integers(0, 2)))
def test_the_newest_checkpoints_and_the_best_are_kept(losses, keep, damaged):
    """Steps 10, 20, …, each with a validation loss. Then some of the newest files are damaged.

    Broken if one is lost or kept too long, if `best.pt` is not the first with the lowest loss, or
    if the newest readable one is not found.
    """
    with tempfile.TemporaryDirectory() as folder, patch.object(os, "fsync", lambda file: None):
        out, best, former = Path(folder), math.inf, None
        for i, loss in enumerate(losses, 1):
            checkpoint.save_run(out, keep, loss < best, former, **CONTENT | {
                "step": 10 * i, "best": float(min(best, loss))})
            best, former = min(best, loss), 10 * i
        kept = range(10 * len(losses), 10 * max(0, len(losses) - keep), -10)
        right = {"model.pt" if i == 0 else f"model-{step:08d}.pt": step
                 for i, step in enumerate(kept)}
        right["best.pt"] = 10 * (losses.index(min(losses)) + 1)
        found = {p.name: checkpoint.load(p, "model")["step"] for p in out.iterdir()}
        assert found == right, f"{found}, by definition {right}"
        order = list(right)
        torn = [name for i, name in enumerate(order) if i in damaged and name != "best.pt"]
        for name in torn:
            raw = (out / name).read_bytes()
            (out / name).unlink()                           # it may be linked to another
            (out / name).write_bytes(raw[:len(raw) // 2])
        found = next(name for name in order if name not in torn)
        skipped = order[:order.index(found)]
        content, wrong = checkpoint.newest(out)
        assert content["step"] == right[found], \
            f"step {content['step']} is found, not {right[found]} ({torn} are damaged)"
        assert [why.split(":")[0] for why in wrong] == [str(out / name) for name in skipped], \
            f"{wrong} were skipped, by definition {skipped}"
        now = {p.name for p in out.iterdir()}
        gone = {name for name in skipped if name != "model.pt"}
        marked = {Path(name).with_suffix(".damaged").name for name in skipped}
        assert now == set(right) - gone | {"model.pt"} | marked, f"files {sorted(now)}"
        step = checkpoint.load(out / "model.pt", "model")["step"]
        assert step == right[found], f"model.pt is of step {step}, not {right[found]}"


CONTENT = {"step": 1, "best": 1.0, "config": {}, "classes": ["a"], "guidance": 2.0,
           "guidance_schedule": "linear", "model": {"w": torch.ones(3)}, "ema": {}, "optimizer": {}}


@for_all(2, layers=st.integers(1, 2), heads=st.integers(1, 2), grid=st.integers(1, 3),
         blocks=st.integers(1, 2), seed=st.integers(0, 99))
def test_models_and_tokenizers_read_back(layers, heads, grid, blocks, seed):
    """As a checkpoint and in the released layout: each tensor to the bit, each size, and all that
    is stored with them. Broken if the average and the newest weights are swapped."""
    sizes = dict(content_layers=layers, query_layers=layers, heads=heads, dim=8 * heads,
                 grid=(grid, grid))
    model, average = (tiny_model(torch.float32, seed + i, **sizes) for i in (0, 1))
    torch.manual_seed(seed)
    vq = VQTokenizer(TokenizerConfig(**asdict(WIDE) | dict(
        codebook_size=40, local_encoder=False, encoder_blocks=blocks, decoder_blocks=blocks + 1)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.pt"
        checkpoint.save(path, "model", config=asdict(model.config), names=["é", "b"],
                        model=model.state_dict(), ema=average.state_dict())
        for weights, right in (("model", model), ("ema", average)):
            got, content = checkpoint.load_model(path, weights)
            unchanged(f"the checkpoint's {weights}", got, right)
            assert content["names"] == ["é", "b"], f"stored with it: {content['names']}"
        unchanged("the default weights", checkpoint.load_model(path)[0], average)
        checkpoint.save_tokenizer(path, vq, step=3)
        for load in (checkpoint.load_tokenizer, checkpoint.load_any_tokenizer):
            got, content = load(path)
            unchanged("the tokenizer", got, vq)
            assert content["step"] == 3, f"step {content['step']}"
        torch.save({"model": export.released(model)}, path)
        got = pretrained.load_released_arpg(path, grid=(grid, grid), head_dim=8)
        unchanged("the released model", got, model, sizes=False)
        torch.save({"model": export.released(vq)}, path)
        unchanged("the released tokenizer", checkpoint.load_any_tokenizer(path)[0], vq, False)


def unchanged(where: str, got: torch.nn.Module, right: torch.nn.Module, sizes: bool = True) -> None:
    """Two modules have the same parameters and sizes. The released layout has no other tensors."""
    got_all, right_all = (m.state_dict() if sizes else dict(m.named_parameters())
                          for m in (got, right))
    assert got_all.keys() == right_all.keys(), f"{where}: {got_all.keys() ^ right_all.keys()}"
    for name, tensor in right_all.items():
        assert torch.equal(got_all[name], tensor), f"{where}: {name} is another"
    assert not sizes or got.config == right.config, f"{where}: {got.config}"
    assert not got.training, f"{where}: is in training mode"


# What sample_mini.py draws.

GRID, CLASSES = (2, 3), 3
SETTINGS = dict(steps=3, schedule="arccos", guidance=2.0, guidance_schedule="linear",
                temperature=1.0, top_k=0, top_p=1.0, order="random", positions="windows",
                within_step="block")
MODEL = tiny_model(grid=GRID, dim=8, heads=1, content_layers=1, query_layers=1, ffn_hidden=8,
                   num_classes=CLASSES)
with default(torch.float64):
    TOKENS = Colours()


@cache
def alone(label: int, seed: int, grid: tuple[int, int]) -> list[np.ndarray]:
    """A picture that is drawn alone, after each step. What is not known yet is grey."""
    table = ((TOKENS.table.detach().numpy() + 1) * 127.5).round()
    shown = [np.full((1, *grid, 3), 128)]
    for ids in complete_steps(MODEL, torch.full((1, *grid), -1), [label], [seed], **SETTINGS):
        shown.append(np.where((ids >= 0)[..., None], table[ids.clamp(min=0)], 128))
    return [colours[0].repeat(2, 0).repeat(2, 1).astype(np.uint8) for colours in shown]


@for_all(12, count=st.integers(1, 6), batch=st.sampled_from([None, 1, 2, 3]),
         world=st.integers(1, 3), seed=st.sampled_from([0, 3, 2**62]), columns=st.integers(1, 5),
         classes=st.one_of(st.none(), st.lists(st.integers(0, CLASSES - 1), min_size=1,
                                               max_size=4)),
         wanted=st.sets(st.sampled_from(["out", "npz", "gif"]), min_size=1),
         larger=st.sampled_from([{}, {}, {}, {"expand": 2}, {"grid": (3, 4)}]))
def test_each_picture_is_the_one_that_is_drawn_alone(count, batch, world, seed, columns, classes,
                                                     wanted, larger):
    """Picture i has the classes' i-th, in turn, and the seed `seed` + i, in batches of any size and
    on any number of processes. All files show the same pictures.

    Broken if seeds or classes restart in a batch or process, if pictures change places, if a file
    that was asked for is not written, or if the animation's frames are not the steps.
    """
    at, sent, sizes = 0, {}, []

    def gather(part):
        sent.setdefault(at, []).append(part)
        if part is not None:
            sizes.append(len(part))
        return [] if at else [sent[rank][len(sent[0]) - 1] for rank in range(world)]

    with (tempfile.TemporaryDirectory() as folder, patch.object(os, "fsync", lambda file: None),
          contextlib.redirect_stdout(io.StringIO()) as told,
          contextlib.redirect_stderr(io.StringIO()),
          patch.multiple(processes, rank=lambda: at, world=lambda: world, gather=gather)):
        places = {flag: Path(folder) / f"x.{flag}" if flag in wanted else None
                  for flag in ("out", "npz", "gif")}
        how = dict(grid=None, expand=None) | larger
        for at in reversed(range(world)):
            try:
                drawing.draw(drawing.Drawer(MODEL, TOKENS, ["a", "b", "c"], dict(SETTINGS)),
                             Namespace(**places, **how, classes=classes, count=count, seed=seed,
                                       control=None, columns=columns, batch_size=batch), CPU)
            except ValueError as error:
                raise AssertionError(f"{count} pictures can't be written: {error}") from None
        grid = how["grid"] or tuple((how["expand"] or 1) * g for g in GRID)
        labels = [(classes or range(CLASSES))[i % len(classes or range(CLASSES))]
                  for i in range(count)]
        steps = [alone(label, seed + i, grid) for i, label in enumerate(labels)]
        right = np.array([shown[-1] for shown in steps])
        assert {p.name for p in Path(folder).iterdir()} == {f"x.{flag}" for flag in wanted}, \
            f"files {os.listdir(folder)}"
        assert all(str(p) in told.getvalue() for p in places.values() if p), "a file is not named"
        assert max(sizes) <= (batch or 100), f"{max(sizes)} pictures at a time, not {batch}"
        columns, zoom = min(columns, count), 64 // (2 * max(grid))
        if places["npz"]:
            with np.load(places["npz"]) as file:
                same("npz", file["arr_0"], right)
                assert file["arr_1"].tolist() == labels, f"classes {file['arr_1']}, not {labels}"
                assert file["seed"] == seed, f"seed {file['seed']}, not {seed}"
        if places["out"]:
            with Image.open(places["out"]) as file:
                same("png", file, images.grid(right, columns, zoom))
        if places["gif"]:
            with Image.open(places["gif"]) as file:
                assert file.n_frames == len(steps[0]), f"{file.n_frames} frames"
                for i, frame in enumerate(zip(*steps)):
                    file.seek(i)
                    same(f"frame {i}", file.convert("RGB"),
                         images.grid(np.array(frame), columns, zoom))
                    long = 1200 if i == file.n_frames - 1 else 120
                    assert file.info["duration"] == long, f"frame {i}: {file.info['duration']} ms"
