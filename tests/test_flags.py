"""Every flag does what its help says. A table has an entry for each flag of each command: what is
different with it. A flag without an entry fails, and so does one that is read and then ignored."""

import contextlib
import io
import json
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, patch

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

import sample_mini
import train_mini
from arpg_mini import ARPG, UserError, VQTokenizer
from arpg_mini.data import images
from arpg_mini.measure import bench, bench_decode, count, edit_scores, evaluation
from arpg_mini.run import checkpoint, describe, drawing, export, prepare, processes, replay, request
from arpg_mini.run import train as loop
from arpg_mini.run.presets import presets
from tests.helpers import code_of, tiny_model
from tests.strategies import for_all
from tests.test_data_definition import CPU, noise
from tests.test_files_definition import TOKENS
from tests.test_run_definition import TOKENIZER, Run, default

Claims = dict[str, bool]                        # what a flag's help says -> whether it is so


def called(main: Callable, *arguments: object) -> str:
    """What a command prints. It must succeed."""
    with (patch.object(sys, "argv", ["command", *map(str, arguments)]),
          contextlib.redirect_stdout(io.StringIO()) as out,
          contextlib.redirect_stderr(io.StringIO()) as err):
        code = code_of(main)
    assert not code, f"{' '.join(map(str, arguments))}: {err.getvalue().splitlines()[-1]}"
    return out.getvalue()


def check(entries: dict[str, Callable], tables: list[dict], where: object) -> None:
    """Every flag of the tables has an entry, and all claims of all entries are true."""
    flags = {row[0] for table in tables for rows in table.values() for row in rows}
    assert flags == set(entries), f"no entry, or no such flag: {flags ^ set(entries)}"
    for flag, entry in entries.items():
        for claim, holds in entry(where).items():
            assert holds, f"{flag}: not so: {claim}"


# sample_mini.py

class Sampler:
    """A run of three classes with a grid of 3×3 tokens, 2×2 pixels each, and pictures to edit."""

    def __init__(self, place: Path):
        self.place, self.run, self.files = place, place / "run", iter(range(10**6))
        self.run.mkdir()
        self.model, average = (tiny_model(
            torch.float32, seed, grid=(3, 3), dim=8, heads=1, content_layers=1, query_layers=1,
            ffn_hidden=8, control_stride=2) for seed in (1, 0))
        checkpoint.save(self.run / "model.pt", "model", config=asdict(average.config), step=1,
                        classes=["a", "b", "c"], guidance=3.0, guidance_schedule="linear",
                        model=self.model.state_dict(), ema=average.state_dict())
        checkpoint.save_tokenizer(self.run / "tokenizer.pt", VQTokenizer(TOKENS.config))
        self.picture, light = noise(0, 6, 6), np.zeros((6, 6), np.uint8)
        light[:2, 2:] = 255
        for name, pixels in (("p", self.picture), ("mask", light), ("black", 0 * light)):
            Image.fromarray(pixels).save(place / f"{name}.png")

    def file(self, ending: str) -> Path:
        return self.place / f"{next(self.files)}{ending}"

    def options(self, *flags: object) -> Namespace:
        options = request.parse([*map(str, flags)])
        request.check(options)
        return options

    def load(self, *flags: object) -> drawing.Drawer:
        return drawing.load(self.options(self.run, "--npz", self.file(".npz"), *flags), CPU)

    def pictures(self, *flags: object) -> np.ndarray:
        return self.arrays(*flags)["arr_0"]

    def arrays(self, *flags: object) -> dict[str, np.ndarray]:
        given = [] if "--count" in flags else ["--count", 4]
        given += [] if "--steps" in flags or "--exact" in flags else ["--steps", 4]
        called(sample_mini.main, self.run, *given, *flags, "--npz", file := self.file(".npz"))
        return dict(np.load(file))

    def edited(self, *flags: object) -> np.ndarray:
        """The result of editing, with guidance and seed as the flags say."""
        called(sample_mini.main, self.run, *flags, "--steps", 3, "--out", file := self.file(".png"))
        with Image.open(file) as picture:
            return np.asarray(picture)

    def frames(self, *flags: object) -> int:
        called(sample_mini.main, self.run, "--count", 2, *flags, "--npz", self.file(".npz"),
               "--gif", file := self.file(".gif"))
        with Image.open(file) as gif:
            return gif.n_frames

    def setting(self, flag: str, value: object, *more: object) -> Claims:
        """A setting that is passed on, and that changes the pictures."""
        name, usual = flag[2:].replace("-", "_"), self.load(*more).settings
        return {f"{name} is {value}": self.load(flag, value, *more).settings == usual | {
                    name: value},
                "the pictures are others": differ(self.pictures(flag, value, *more),
                                                  self.pictures(*more))}


def differ(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool((a != b).any())


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool((a == b).all())


@contextmanager
def sampler() -> Iterator[Sampler]:
    """Its tokenizer has eleven colours, and its files are not waited for."""
    table = TOKENS.table.detach().float()

    def encode(self, pictures):
        cells = pictures.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)).permute(0, 2, 3, 1)
        return (cells[..., None, :] - table).square().sum(-1).argmin(-1)

    def once(load):                             # reading the same file again takes long
        known = cache(load)

        def again(*how):
            if next(known(*how)[0].parameters()).dtype != torch.float32:    # by --precision
                known.cache_clear()
            return known(*how)
        return again

    with (tempfile.TemporaryDirectory() as folder, patch.object(os, "fsync", lambda file: None),
          patch.multiple(checkpoint, load_model=once(checkpoint.load_model),
                         load_tokenizer=once(checkpoint.load_tokenizer)),
          patch.object(VQTokenizer, "encode", encode),
          patch.object(VQTokenizer, "decode", lambda self, ids: TOKENS.decode(ids).float())):
        yield Sampler(Path(folder))


def released(s: Sampler) -> Claims:
    """Weights are those of the two released files."""
    torch.manual_seed(0)
    model = tiny_model(torch.float32, grid=(16, 16), dim=64, heads=1, content_layers=1,
                       query_layers=1)
    vq = VQTokenizer(type(TOKENS.config)(**TOKENIZER | {"local_encoder": False,
                                                        "decoder_blocks": 2}))
    files = [s.file(".pt") for _ in range(2)]
    for module, file in zip((model, vq), files):
        torch.save({"model": export.released(module)}, file)
    drawer = drawing.load(s.options("--released", files[0], "--tokenizer", files[1], "--npz",
                                    s.file(".npz")), CPU)
    return {name: all(torch.equal(a, b) for a, b in zip(got.parameters(), right.parameters()))
            for name, got, right in (("its model", drawer.model, model),
                                     ("its tokenizer", drawer.tokenizer, vq))}


def inpainted(s: Sampler, *flags: object) -> np.ndarray:
    return s.edited("--inpaint", s.place / "p.png", *flags)


def edit_claims(s: Sampler) -> Claims:
    a, b = (s.edited("--edit", s.place / "p.png", "--box", "2,0,6,2", "--classes", name,
                     "--guidance", 9) for name in "ab")
    return {"the rest stays": equal(a[2:], s.picture[2:]) and equal(a[:, :2], s.picture[:, :2]),
            "it becomes the class": differ(a, b)}


def files_of(s: Sampler, *flags: str) -> Claims:
    """Of the three kinds of files, those are written that are asked for."""
    with tempfile.TemporaryDirectory() as folder:
        names = {flag: f"x.{flag[2:].replace('out', 'png')}" for flag in flags}
        called(sample_mini.main, s.run, "--count", 1, "--steps", 1,
               *[word for flag in flags for word in (flag, Path(folder) / names[flag])])
        return {f"{names} are written": set(os.listdir(folder)) == set(names.values())}


def png_of(s: Sampler, *flags: object) -> tuple[int, int]:
    called(sample_mini.main, s.run, "--count", 4, "--steps", 1, *flags, "--out",
           file := s.file(".png"))
    with Image.open(file) as picture:
        return picture.size


class Begins(Exception):
    """A batch begins to be drawn."""


def first_batch(s: Sampler, *flags: object) -> int:
    with (patch.object(drawing, "complete_steps", side_effect=Begins) as calls,
          contextlib.suppress(Begins)):
        s.pictures(*flags)
    return len(calls.call_args.args[2])


def native_precision(name: str | None, kind: str, native: bool) -> torch.dtype:
    with patch("torch.cuda.is_bf16_supported", side_effect=lambda including_emulation=True:
               native or including_emulation):
        return processes.pick_precision(name, torch.device(kind))


def among(world: int, s: Sampler, *flags: object) -> int:
    with patch.object(processes, "world", return_value=world):
        return first_batch(s, *flags)


def launched(main: Callable, *flags: object) -> SimpleNamespace:
    """How a command would start its processes: their number, the device, and what they get."""
    with patch.object(processes, "launch", return_value=None) as launch:
        called(main, *flags)
    _, gpus, device, *rest = launch.call_args.args
    return SimpleNamespace(gpus=gpus, device=device, run=rest[0], options=rest[-1])


def refuses(device: str, main: Callable, *flags: object) -> bool:
    with (patch.object(sys, "argv", ["command", *map(str, flags), "--device", device]),
          contextlib.redirect_stderr(io.StringIO()) as said):
        return code_of(main) == 2 and f"--device {device}" in said.getvalue()


def compiled(s: Sampler, *flags: object) -> int:
    with patch.object(replay, "speed_up") as speed_up:
        s.load(*flags)
    return speed_up.call_count


SAMPLING = {
    "--classes": lambda s: {
        "in turn, by name or number": s.arrays("--classes", "b,0")["arr_1"].tolist() == [1, 0] * 2,
        "all by default": s.arrays()["arr_1"].tolist() == [0, 1, 2, 0],
        "pictures of that class": differ(s.pictures("--classes", 0), s.pictures("--classes", 1))},
    "--released": released, "--tokenizer": released,
    "--count": lambda s: {"that many": len(s.pictures("--count", 3)) == 3},
    "--seed": lambda s: {
        "picture i is drawn from seed + i": equal(s.pictures("--seed", 1, "--classes", 0)[:3],
                                                  s.pictures("--classes", 0)[1:])},
    "--grid": lambda s: {"that size": s.pictures("--grid", "2x4").shape == (4, 4, 8, 3)},
    "--expand": lambda s: {"that many times the grid": equal(s.pictures("--expand", 2),
                                                             s.pictures("--grid", "6x6"))},
    "--control": lambda s: {
        "its edges are followed": differ(s.pictures("--control", s.place / "mask.png"),
                                         s.pictures("--control", s.place / "black.png"))},
    "--inpaint": lambda s: {
        "only there": equal((got := inpainted(s, "--box", "2,0,6,2"))[2:], s.picture[2:]),
        "there, something else": differ(got, s.picture)},
    "--edit": edit_claims,
    "--was": lambda s: {"guidance avoids it": differ(*[s.edited(
        "--edit", s.place / "p.png", "--box", "0,0,6,6", "--classes", "a", "--guidance", 9,
        "--was", was) for was in "bc"])},
    "--outpaint": lambda s: {"in the middle": equal(s.edited(
        "--outpaint", s.place / "p.png", "--grid", "5x5")[2:8, 2:8], s.picture)},
    "--mask": lambda s: {"where it is light": equal(
        inpainted(s, "--mask", s.place / "mask.png"), inpainted(s, "--box", "2,0,6,2"))},
    "--box": lambda s: {"the rectangle": equal(
        (got := inpainted(s, "--box", "0,3,4,6"))[:3], s.picture[:3]) and equal(
        got[:, 4:], s.picture[:, 4:]) and differ(got, s.picture)},
    "--at": lambda s: {"there": equal(s.edited(
        "--outpaint", s.place / "p.png", "--grid", "5x4", "--at", "2,0")[4:, :6], s.picture)},
    "--feather": lambda s: {
        "the seam is blended": differ(*[inpainted(s, "--box", "2,0,6,2", "--feather", n)
                                        for n in (0, 2)]),
        "the rest stays": equal(inpainted(s, "--box", "2,0,6,2", "--feather", 2)[2:],
                                s.picture[2:])},
    "--steps": lambda s: {f"{n} steps": s.frames("--steps", n) == n + 1 for n in (2, 7)},
    "--exact": lambda s: {
        "the pictures of one token a step": equal(s.pictures("--exact"), s.pictures("--steps", 9)),
        "in fewer passes": s.frames("--exact") < 10},
    "--window": lambda s: {
        "one token a pass": s.frames("--exact", "--window", 1) == 10,
        "the same pictures": equal(s.pictures("--exact", "--window", 2), s.pictures("--exact")),
        "16 by default": s.load("--exact").settings["exact"] == 16},
    "--schedule": lambda s: s.setting("--schedule", "constant"),
    "--guidance": lambda s: s.setting("--guidance", 9.0) | {
        "the run's by default": s.load().settings["guidance"] == 3},
    "--guidance-schedule": lambda s: s.setting("--guidance-schedule", "constant") | {
        "the run's by default": s.load().settings["guidance_schedule"] == "linear"},
    "--temperature": lambda s: s.setting("--temperature", 9.0) | {
        "0: the likeliest id": equal(s.pictures("--temperature", 0), s.pictures("--top-k", 1))},
    "--top-k": lambda s: s.setting("--top-k", 1),
    "--top-p": lambda s: s.setting("--top-p", 1e-9) | {
        "of a total of 0, the likeliest id": equal(s.pictures("--temperature", 0),
                                                   s.pictures("--top-p", 1e-9))},
    "--order": lambda s: s.setting("--order", "raster"),
    "--positions": lambda s: s.setting("--positions", "ntk", "--grid", "3x8"),
    "--within-step": lambda s: s.setting("--within-step", "causal"),
    "--weights": lambda s: {
        "the newest": all(torch.equal(a, b) for a, b in zip(
            s.load("--weights", "model").model.parameters(), s.model.parameters())),
        "the average by default": differ(s.pictures("--weights", "model"), s.pictures())
        and equal(s.pictures("--weights", "ema"), s.pictures())},
    "--out": lambda s: files_of(s, "--out") | files_of(s, "--npz", "--out"),
    "--gif": lambda s: files_of(s, "--gif", "--npz"),
    "--npz": lambda s: files_of(s, "--npz"),
    "--columns": lambda s: {"that many": png_of(s, "--columns", 3) == (3 * 62 - 2, 2 * 62 - 2),
                            "at most 10": png_of(s)[1] == 60},
    "--batch-size": lambda s: {"so many at a time": first_batch(s, "--batch-size", 3) == 3,
                               "100 by default": first_batch(s, "--count", 101) == 100,
                               "of each process": among(3, s, "--batch-size", 3, "--count", 9) == 3,
                               "large pictures": [drawing.most_at_once(side, torch.device(kind))
                                                  for side in ((256, 256), (512, 1024), (9, 9))
                                                  for kind in ("cpu", "cuda")]
                               == [16, 64, 2, 8, 100, 100]},
    "--device": lambda s: {
        "passed on": launched(sample_mini.main, s.run, "--npz", s.file(".npz"), "--device", "cpu"
                              ).device == "cpu",
        "checked": refuses("tpu", sample_mini.main, s.run, "--npz", s.file(".npz"))},
    "--precision": lambda s: {name: s.load("--precision", name).model.head.weight.dtype == kind
                              for name, kind in (("bfloat16", torch.bfloat16),
                                                 ("float32", torch.float32))}
    | {f"{name} on {kind}, {native} native": native_precision(name, kind, native) == right
       for name, kind, native, right in ((None, "cpu", True, torch.float32),
                                         (None, "cuda", True, torch.bfloat16),
                                         (None, "cuda", False, torch.float32),
                                         ("bfloat16", "cuda", False, torch.bfloat16),
                                         ("float32", "cuda", True, torch.float32))},
    "--gpus": lambda s: {"that many processes": launched(
        sample_mini.main, s.run, "--npz", s.file(".npz"), "--gpus", 3, "--device", "cpu").gpus
        == 3},
    "--compile": lambda s: {"faster": (compiled(s, "--compile"), compiled(s)) == (1, 0)}}


@for_all(1, command=st.sampled_from(["sample_mini.py"]))
def test_every_flag_of_sampling_does_what_it_says(command):
    """Each is given to the real command, and its pictures are compared with those without it."""
    with sampler() as s:
        check(SAMPLING, [request.FLAGS], s)


# train_mini.py

class Trainer:
    """What follows from the flags of training: a description, a plan, and a short training."""

    def __init__(self, place: Path):
        self.place = place
        self.usual = self.described()
        (place / "x.pt").write_bytes(b"")
        self.trained, self.changed = self.train(), self.train(
            "--micro-batch", "2", "--recompute", "--compile", "--precision", "bfloat16",
            "--deterministic", "--save-every", "2", "--keep", "4", "--tensorboard")

    def described(self, *flags: object) -> dict:
        options = describe.parse(["--out", str(self.place / "none"), *map(str, flags)])
        return describe.describe_run(options)

    def stores(self, flag: str, value: object, place: str, stored: object = None,
               **also: object) -> Claims:
        """The description has the value in that place, and everything else is as without it."""
        stored, run = value if stored is None else stored, self.described(flag, value)
        *inner, name = place.split(".")
        changes = self.changes(self.usual, run)
        return {f"{place} is {stored}": (run[inner[0]] if inner else run)[name] == stored,
                f"only that differs, not {changes}": changes == {place, *also}}

    def changes(self, a: dict, b: dict, before: str = "") -> set[str]:
        return {place for name in a.keys() | b.keys() for place in (
            self.changes(a[name], b[name], f"{name}.") if isinstance(a.get(name), dict)
            else [before + name] * (a.get(name) != b.get(name)))}

    def train(self, *flags: str) -> SimpleNamespace:
        """Six steps of a tiny run. How its model was called, and what it left."""
        seen = SimpleNamespace(batches=[], recompute=set(), half=set(), deterministic=set())
        forward, board = ARPG.forward, Mock()

        def watched(model, tokens, *more, **how):
            if model.training:
                seen.batches.append(len(tokens))
                seen.recompute.add(all(b.recompute for b in [*model.content, *model.query]))
                seen.half.add(torch.is_autocast_enabled("cpu"))
                seen.deterministic.add(torch.are_deterministic_algorithms_enabled())
            return forward(model, tokens, *more, **how)

        with ExitStack() as stack:
            seen.compiled = stack.enter_context(patch.object(torch.nn.Module, "compile"))
            for change in (patch.object(ARPG, "forward", watched),
                           patch.object(os, "fsync", lambda file: None),
                           contextlib.redirect_stderr(io.StringIO())):
                stack.enter_context(change)
            sys.modules["torch.utils.tensorboard"] = board
            stack.callback(sys.modules.pop, "torch.utils.tensorboard")
            with tempfile.TemporaryDirectory() as folder:
                with default(torch.float64):
                    run = Run(Path(folder) / "run", steps=6)
                run.options = describe.parse(["--out", str(run.out), *flags])
                run.train()
                seen.kept = len(list(run.out.glob("model-*.pt")))
                seen.sheets = sorted(int(p.stem[5:]) for p in (run.out / "samples").iterdir())
        torch.use_deterministic_algorithms(False)
        seen.rows = board.SummaryWriter.return_value.add_scalar.call_count
        return seen

    def both(self, name: str, usual: object, changed: object) -> Claims:
        found = getattr(self.trained, name), getattr(self.changed, name)
        return {f"{name}: {usual} without it, {changed} with it ({found})":
                found == (usual, changed)}

    def plan(self, *flags: object) -> str:
        return called(train_mini.main, "--preset", "arpg-l", "--plan", *flags)

    def plans(self, *flags: object, says: str) -> Claims:
        return {f"the plan says {says!r}": says in self.plan(*flags) and says not in self.plan()}

    def sharded(self, *flags: str) -> bool:
        """Whether the weights would be spread over two processes."""
        with (patch.object(processes, "world", return_value=2), default(torch.float64),
              patch.object(processes, "wrap", side_effect=StopIteration) as wrap):
            with tempfile.TemporaryDirectory() as folder, contextlib.suppress(StopIteration):
                run = Run(Path(folder) / "run", steps=1)
                run.options = describe.parse(["--out", str(run.out), *flags])
                loop.train(run.run, run.options, prepare.Ready(
                    run.ids, run.held_out, run.tokenizer, run.sizes), processes.Stop(()), CPU)
        return wrap.call_args.args[2]

    def resumed(self) -> Claims:
        """The stored description counts, whatever the preset says."""
        (self.place / "old").mkdir()
        text = self.described("--seed", 7, "--steps", 9) | {"classes": ["a"]}
        (self.place / "old" / "config.json").write_text(json.dumps(text))
        options = describe.parse(["--resume", "--out", str(self.place / "old")])
        run = describe.describe_run(options)
        try:
            describe.describe_run(describe.parse(["--out", str(self.place / "old")]))
            refused = False
        except UserError:
            refused = True
        return {"continued as it was described": (run["seed"], run["train"]["steps"]) == (7, 9),
                "only with the flag": refused}


FILE = "x.pt"
TRAINING = {
    "--preset": lambda t: {"its sizes": t.described("--preset", "folder")["model"] == asdict(
        presets()["folder"].model)},
    "--data": lambda t: {"what it names": t.described("--data", t.place)["data"] == str(t.place),
                         "shapes by default": t.usual["data"] == "shapes",
                         "its preset": t.described("--data", "fashion-mnist")["side"] == 28},
    "--tokenizer": lambda t: t.stores("--tokenizer", t.place / FILE, "tokenizer_file",
                                      str(t.place / FILE)),
    "--control": lambda t: t.stores("--control", "edges", "control"),
    "--init": lambda t: t.stores("--init", t.place / FILE, "init", str(t.place / FILE)),
    "--views": lambda t: t.stores("--views", "center-flip", "views"),
    "--out": lambda t: {"the run's folder": launched(
        train_mini.main, "--out", t.place / "here", "--device", "cpu").options.out
        == t.place / "here"},
    "--resume": lambda t: t.resumed(),
    "--device": lambda t: {"passed on": launched(
        train_mini.main, "--out", t.place / "here", "--device", "cpu").device == "cpu",
        "checked": refuses("tpu", train_mini.main, "--out", t.place / "here")},
    "--gpus": lambda t: {"that many processes": launched(
        train_mini.main, "--out", t.place / "here", "--device", "cpu", "--gpus", 2).gpus == 2}
        | t.plans("--gpus", 8, says="memory of each of 8 processes"),
    "--steps": lambda t: t.stores("--steps", 17, "train.steps"),
    "--tokenizer-steps": lambda t: t.stores("--tokenizer-steps", 17, "train.tokenizer_steps"),
    "--batch-size": lambda t: t.stores("--batch-size", 17, "train.batch_size"),
    "--lr": lambda t: t.stores("--lr", 0.5, "train.lr"),
    "--dropout": lambda t: t.stores("--dropout", 0.5, "model.dropout"),
    "--side": lambda t: t.stores("--side", 17, "side"),
    "--seed": lambda t: t.stores("--seed", 17, "seed"),
    "--micro-batch": lambda t: {"so many at a time": (
        max(t.trained.batches), max(t.changed.batches)) == (6, 2)}
        | t.plans("--micro-batch", 3, says="3 images at a time"),
    "--shard": lambda t: {"spread over the processes": (t.sharded("--shard"), t.sharded())
                          == (True, False)} | t.plans("--shard", "--gpus", 2, says="sharded"),
    "--recompute": lambda t: t.both("recompute", {False}, {True})
    | t.plans("--recompute", says="recomputing"),
    "--compile": lambda t: {"all blocks, once": (
        t.trained.compiled.call_count, t.changed.compiled.call_count) == (0, 2)},
    "--precision": lambda t: t.both("half", {False}, {True})
    | t.plans("--precision", "float32", says="float32"),
    "--deterministic": lambda t: t.both("deterministic", {False}, {True}),
    "--save-every": lambda t: t.both("sheets", [1, 2, 3, 4, 5, 6], [2, 4, 6]),
    "--keep": lambda t: {"beside the newest": (t.trained.kept, t.changed.kept) == (1, 2)},
    "--tensorboard": lambda t: {"the same rows": t.trained.rows == 0 < t.changed.rows},
    "--plan": lambda t: {"no training": "parameters" in t.plan()},
    "--device-tflops": lambda t: t.plans("--device-tflops", 100, says="of 100 TFLOP/s"),
    "--utilisation": lambda t: t.plans("--utilisation", 0.25, says="assuming 25%")}


@for_all(1, command=st.sampled_from(["train_mini.py"]))
def test_every_flag_of_training_does_what_it_says(command):
    """A flag of the description is stored in its place and changes nothing else. What a description
    does is the subject of other properties. The other flags are seen at work in a short training.
    """
    with tempfile.TemporaryDirectory() as folder:
        check(TRAINING, [describe.FLAGS], Trainer(Path(folder)))


# The commands that measure.

class Measure:
    """What the commands would compute with their flags."""

    def __init__(self, place: Path):
        self.place = place
        for name in ("real", "fake"):
            images.save_npz(place / f"{name}.npz", [noise(0, 3, 4, 4)], (3, 4, 4, 3), np.zeros(3))

    def evaluate(self, *flags: object) -> tuple:
        """Which table is printed, and with what."""
        names = "compare", "orders_table", "steps_table", "score_shapes"
        with ExitStack() as stack:
            calls = [stack.enter_context(patch.object(evaluation, name)) for name in names]
            called(evaluation.main, self.place, *flags)
        name, call = next((n, c) for n, c in zip(names, calls) if c.called)
        return name, *call.call_args.args

    def network(self, *flags: object) -> tuple:
        """How two files are compared: with which network, and whether few pictures are allowed."""
        with (patch.object(evaluation, "choose_network", side_effect=StopIteration) as choose,
              contextlib.suppress(StopIteration)):
            called(evaluation.main, self.place / "real.npz", self.place / "fake.npz", *flags)
        return choose.call_args.args[0]

    def few(self, *flags: object) -> bool:
        """Whether three pictures are compared by five features."""
        def features(pictures):
            return torch.zeros(len(pictures), 5)

        with (patch.object(evaluation, "choose_network", lambda *how: ("x", "y", features, None)),
              patch.object(sys, "argv", ["x", str(self.place / "real.npz"),
                                         str(self.place / "fake.npz"), *flags]),
              contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())):
            return code_of(evaluation.main) == 0

    def scores(self, *flags: object) -> tuple:
        """What the scorer of edits is made of, which scores it gives, and what it draws."""
        scorer = Mock()
        scorer.return_value.model.config.grid = 6, 6
        scorer.return_value.examples = [("x", noise(0, 2, 4, 4))]
        names = "control", "inpainting", "class_editing", "outpainting", "larger"
        with ExitStack() as stack:
            stack.enter_context(patch.object(edit_scores, "Scorer", scorer))
            stack.enter_context(patch.object(edit_scores, "shapes_classifier"))
            calls = [stack.enter_context(patch.object(edit_scores, name, return_value=[]))
                     for name in names]
            called(edit_scores.main, self.place, *flags)
        return *scorer.call_args.args[1:], [n for n, call in zip(names, calls) if call.called]

    def bench(self, what: str, *flags: object, main: bool = True) -> tuple:
        """What a benchmark gets: sizes, options, device, dtype; and what is printed."""
        modules = {"train": (bench, "bench_train"), "decode": (bench_decode, "bench_decode"),
                   "memory": (bench_decode, "bench_memory"),
                   "exact": (bench_decode, "bench_exact"), "count": (count, "bench_count"),
                   "scaling": (bench_decode, "bench_scaling")}
        with patch.object(*modules[what], return_value=[]) as measure, \
                patch.object(bench, "print_table"):
            said = called(bench.main, what, *flags)
        return *measure.call_args.args, said

    def option(self, what: str, flag: str, text: object, value: object) -> Claims:
        name = flag[2:].replace("-", "_")
        return {f"{value}": getattr(self.bench(what, flag, text)[1], name) == value,
                "another by default": getattr(self.bench(what)[1], name) != value}


EVALUATION = {
    "--inception": lambda m: {"that network": m.network("--inception", "x").inception == Path("x")},
    "--judge": lambda m: {"that judge": m.network("--judge", "shapes").judge == "shapes"},
    "--few": lambda m: {"allowed": (m.few("--few"), m.few()) == (True, False)},
    "--orders": lambda m: {"that table": (m.evaluate("--orders")[0], m.evaluate()[0])
                           == ("orders_table", "steps_table")},
    "--count": lambda m: {"that many": m.evaluate("--count", 7)[2] == 7 == m.evaluate(
        "--count", 7, "--orders")[2], "the usual number": m.evaluate()[2] == 500
        and m.evaluate("--orders")[2] == 2000},
    "--guidance": lambda m: {"passed on": m.evaluate("--guidance", 7)[3] == 7,
                             "the usual": m.evaluate()[3] == 2},
    "--device": lambda m: {"passed on": m.evaluate("--device", "cpu")[-1] == CPU,
                           "checked": refuses("tpu", evaluation.main, m.place)}}
EDIT_SCORES = {
    "--control": lambda m: {"those scores": (m.scores("--control")[-2:], m.scores()[-2:]) == (
        (True, ["control"]), (False, ["inpainting", "class_editing", "outpainting", "larger"]))},
    "--count": lambda m: {"that many": (m.scores("--count", 17)[0], m.scores()[0]) == (17, 500)},
    "--steps": lambda m: {"that many": (m.scores("--steps", 17)[1], m.scores()[1]) == (17, 16)},
    "--guidance": lambda m: {"passed on": (m.scores("--guidance", 7)[2], m.scores()[2]) == (7, 2)},
    "--out": lambda m: {"a picture": bool(m.scores("--out", m.place / "x.png"))
                        and (m.place / "x.png").exists()},
    "--device": lambda m: {"passed on": m.scores("--device", "cpu")[3] == CPU,
                           "checked": refuses("tpu", edit_scores.main, m.place)}}
BENCH = {
    "--preset": lambda m: {"its sizes": [m.bench("train", *flags)[0].model.dim for flags in (
        ["--preset", "arpg-l"], [])] == [1024, 128]},
    "--batch-size": lambda m: m.option("decode", "--batch-size", "3,5", [3, 5]),
    "--repeats": lambda m: m.option("memory", "--repeats", 7, 7),
    "--device": lambda m: {"passed on": m.bench("train", "--device", "cpu")[2] == CPU,
                           "checked": refuses("tpu", bench.main, "train")},
    "--precision": lambda m: {"passed on": [m.bench("train", *flags)[3] for flags in (
        ["--precision", "bfloat16", "--device", "cpu"], ["--device", "cpu"])] == [
        torch.bfloat16, torch.float32]},
    "--json": lambda m: {"printed": [m.bench("scaling", *flags)[4].strip() == "[]" for flags in (
        ["--json"], [])] == [True, False]},
    "--loss-rows": lambda m: m.option("train", "--loss-rows", 17, 17),
    "--variants": lambda m: m.option("train", "--variants", bench.VARIANTS[3], [bench.VARIANTS[3]]),
    "--steps": lambda m: m.option("decode", "--steps", "3,5", [3, 5]),
    "--guidance": lambda m: m.option("decode", "--guidance", 7, 7.0) | {
        "of exact": m.bench("exact", "--guidance", 7)[1].guidance == 7},
    "--windows": lambda m: m.option("exact", "--windows", "3,5", [3, 5]),
    "--baselines": lambda m: m.option("decode", "--baselines", bench.BASELINES[0],
                                      [bench.BASELINES[0]]),
    "--sweeps": lambda m: m.option("scaling", "--sweeps", bench.SWEEPS[0], [bench.SWEEPS[0]])}


@for_all(1, command=st.sampled_from(["measure"]))
def test_every_flag_of_measuring_reaches_what_is_measured(command):
    tables = [{"flags": flags} for _, flags in bench.KINDS.values()]
    common = ("--preset", "--batch-size", "--repeats", "--device", "--precision", "--json")
    with tempfile.TemporaryDirectory() as folder:
        m = Measure(Path(folder))
        check(EVALUATION, [evaluation.FLAGS], m)
        check(EDIT_SCORES, [edit_scores.FLAGS], m)
        check(BENCH, [*tables, {"of all": [(flag,) for flag in common]}], m)
        given = vars(bench.parse(["train"])).keys()
        assert {f"--{name.replace('_', '-')}" for name in given} - set(BENCH) == {"--what"}, \
            f"no entry: {given}"
