"""What a run leaves equals its definition: log, checkpoints, sheets; on one process or on two.

Each case trains a few steps by `run.train.train`, in float64, and by hand. The processes are forks
of this one, so they start quickly and inherit a mutant. Where CUDA is available, forks can't
compute gradients. There the processes are new ones: the tests hold, but notice no mutant.
"""

import copy
import csv
import multiprocessing
import os
import socket
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from arpg_mini import ARPG, ModelConfig, TokenizerConfig, VQTokenizer, training
from arpg_mini.config import TrainConfig
from arpg_mini.control import edges
from arpg_mini.data import images
from arpg_mini.data.builtin import Pictures
from arpg_mini.decoding import decode
from arpg_mini.run import checkpoint, prepare, processes, tokenizing
from arpg_mini.run import train as loop
from tests.helpers import FakeIds, tiny_model
from tests.strategies import for_all
from tests.test_training_definition import SMALL, agree, noise
from tests.training_definition import train_by_hand, validate_by_hand

TOKENIZER = dict(channels=32, multipliers=(1, 1), encoder_blocks=1, decoder_blocks=1,
                 latent_channels=4, codebook_size=11, code_dim=3, local_encoder=True)
ONE_A_STEP, SAVING = 1.0, 100.0              # seconds that a step and a validation take


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def in_processes(world: int, work: Callable, *arguments, code: int = 0) -> None:
    """Call `work(*arguments, device)` in forks of this process, connected as `launch` does it."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    start = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    where = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(world),
             "OMP_NUM_THREADS": "1"}
    with patch.dict(os.environ, where):
        members = [start.Process(target=processes._spawned, args=(rank, work, "cpu", *arguments))
                   for rank in range(world)]
        for member in members:
            member.start()
    for member in members:
        member.join(100)
        member.kill()
        member.join()
    codes = [member.exitcode for member in members]
    if any(c not in (code, 0) for c in codes) or code not in codes:
        raise RuntimeError(f"the processes ended with {codes}, not {code}")


class Colours(torch.nn.Module):
    """A tokenizer whose eleven ids are colours of 2×2 pixels."""

    config = TokenizerConfig(**TOKENIZER)

    def __init__(self):
        super().__init__()
        table = np.random.default_rng(3).random((11, 3)) * 2 - 1
        self.table = torch.nn.Parameter(torch.from_numpy(table).to(torch.get_default_dtype()))

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        colours = self.table.detach()[ids].permute(0, 3, 1, 2)
        return colours.repeat_interleave(2, 2).repeat_interleave(2, 3)


class Run:
    """A tiny run: the description of it, its folder, and what `train` needs."""

    def __init__(self, out: Path, *, steps: int, batch_size: int = 6, save_every: int = 4,
                 keep: int = 2, world: int = 1, micro_batch: int = 64, shard: bool = False,
                 control: bool = False, init: bool = False, unlike: bool = False,
                 dropout: float = 0.0, bad: tuple[int, ...] = (), stops: tuple[int, ...] = (),
                 precision: str | None = None):
        """unlike: held-out pictures are unlike the others, so that their loss rises.
        bad: steps whose loss is NaN in one process. stops: steps after which a signal comes."""
        self.out, self.world, self.bad, self.stops = out, world, set(bad), stops
        self.sizes = ModelConfig(**SMALL, vocab_size=11, num_classes=3, dropout=dropout,
                                 class_dropout=0.3, control_stride=2 if control else 0)
        self.config = TrainConfig(steps=steps, batch_size=batch_size, lr=0.03, warmup=0.02, ema=0.5,
                                  micro_batch=micro_batch)
        self.tokenizer = Colours()
        self.ids, self.held_out = FakeIds(6, 15), FakeIds(6, 7, seed=1)
        if unlike:
            self.ids.ids, self.held_out.ids = self.ids.ids % 3, self.held_out.ids % 3 + 8
        out.mkdir()
        self.run = {"seed": 5, "train": asdict(self.config) | {"micro_batch": 64},
                    "classes": ["a", "b", "c"], "guidance": 1.5, "guidance_schedule": "linear",
                    "control": "edges" if control else None, "init": None}
        self.model = self.first_model()
        if init:
            self.run["init"] = str(out.parent / "init.pt")
            other, self.model = tiny_model(torch.get_default_dtype(), 1, **asdict(self.sizes)), \
                tiny_model(torch.get_default_dtype(), 2, **asdict(self.sizes))
            checkpoint.save(Path(self.run["init"]), "model", config=asdict(self.sizes), step=9,
                            model=other.state_dict(), ema=self.model.state_dict())
        self.options = Namespace(out=out, keep=keep, deterministic=False, micro_batch=micro_batch,
                                 precision=precision, shard=shard, recompute=False, compile=False,
                                 save_every=save_every, tensorboard=False)

    def first_model(self) -> ARPG:
        torch.manual_seed(self.run["seed"])
        return ARPG(self.sizes)

    def control(self) -> Callable | None:
        return self.run["control"] and (lambda tokens: edges(self.tokenizer.decode(
            tokens.view(-1, *self.sizes.grid))))

    def train(self, start: int = 0, stop: int | None = None) -> None:
        """Train on, until a signal in one process after step `stop` or to the end."""
        arguments = start, stop
        if self.world > 1:
            in_processes(self.world, self.member, *arguments, code=143 if stop else 0)
            return
        try:
            self.member(*arguments, torch.device("cpu"))
            assert stop is None, f"the signal after step {stop} did not end the run"
        except SystemExit as end:
            assert stop and end.code == 143, f"exit code {end.code}"

    def member(self, start: int, stop: int | None, device: torch.device) -> None:
        """One process. Its last loss of the `bad` steps is NaN, the signal comes in the last
        process, and a clock tells `train` that each step takes a second."""
        signal, forward, now = processes.Stop(()), ARPG.forward, 0.0
        pieces = -(-(self.config.batch_size // self.world) // self.config.micro_batch)
        last, calls = processes.rank() == processes.world() - 1, start * pieces

        def spoiled(model, *batch, loss_rows=0, **how):
            nonlocal calls, now
            loss = forward(model, *batch, loss_rows=loss_rows, **how)
            if not model.training:
                now += SAVING if loss_rows else 0
                return loss
            step, piece = divmod(calls, pieces)
            calls, now = calls + 1, now + ONE_A_STEP / pieces
            if step + 1 == stop and last:
                signal.signal = 15
            return loss * (float("nan") if step in self.bad and last and piece == pieces - 1 else 1)

        ready = prepare.Ready(self.ids, self.held_out, self.tokenizer, self.sizes)
        with default(self.tokenizer.table.dtype), patch.object(ARPG, "forward", spoiled), \
                patch.object(loop.time, "perf_counter", lambda: now):
            average = loop.train(self.run, self.options, ready, signal, device)
        if average is not None:
            torch.save(average.state_dict(), self.out / "returned.pt")

    def by_hand(self, steps: int) -> list[dict]:
        return list(islice(train_by_hand(
            copy.deepcopy(self.model), self.ids, self.config, self.run["seed"], world=self.world,
            control=self.control(), bad=self.bad), steps))

    def average(self, moment: dict) -> ARPG:
        model = copy.deepcopy(self.model).eval()
        model.load_state_dict(moment["average"])
        return model

    def check(self, right: list[dict], ends: list[int], tolerance: float = 1e-7) -> None:
        """Compare everything in the folder with steps computed by hand. ends: the last step of each
        stretch."""
        rows, looks = self.expected_rows(right, ends)
        with open(self.out / "log.csv", newline="", encoding="utf-8") as file:
            got = [{k: float(v or "nan") for k, v in row.items()} for row in csv.DictReader(file)]
        assert [r["step"] for r in got] == [r["step"] for r in rows], \
            f"rows of steps {[r['step'] for r in got]}, not {[r['step'] for r in rows]}"
        for a, b in zip(got, rows):
            agree(f"row of step {b['step']}", a, b, max(1e-5, tolerance))   # six digits are written
        saves = sorted({*range(self.options.save_every, ends[-1] + 1, self.options.save_every),
                        *ends})
        best = min(looks, key=looks.get)
        names = {"model.pt": saves[-1], "best.pt": best} | {
            f"model-{s:08d}.pt": s for s in saves[:-1][::-1][:self.options.keep - 1]}
        files = {p.name: checkpoint.load(p, "model") for p in self.out.glob("*.pt")
                 if p.name != "returned.pt"}
        assert {k: v["step"] for k, v in files.items()} == names, \
            f"checkpoints of steps {({k: v['step'] for k, v in files.items()})}, not {names}"
        for name, saved in files.items():
            moment = right[saved["step"] - 1]
            optimizer = saved["optimizer"]["state"]
            agree(f"{name} of step {saved['step']}", {
                "best": saved["best"], "weights": saved["model"], "average": saved["ema"],
                **{k: {n: s[k] for n, s in optimizer.items()} for k in ("exp_avg", "exp_avg_sq",
                                                                       "step")}},
                {"best": min(v for s, v in looks.items() if s <= saved["step"]),
                 **{k: moment[k] for k in ("weights", "average", "exp_avg", "exp_avg_sq", "step")}},
                tolerance)
            assert saved["config"] == asdict(self.sizes), f"{name} has other sizes"
        if ends[-1] == self.config.steps:
            agree("the returned model", torch.load(self.out / "returned.pt", weights_only=True),
                  right[-1]["average"], tolerance)
        sheets = sorted(int(p.stem[5:]) for p in (self.out / "samples").iterdir())
        assert sheets == sorted(looks), f"sheets of steps {sheets}, not {sorted(looks)}"
        for step in looks:
            with Image.open(self.out / "samples" / f"step-{step:08d}.png") as picture:
                drawn = np.asarray(picture)
            assert np.array_equal(drawn, self.sheet(right[step - 1])), \
                f"the sheet of step {step} is not drawn from the average of that step"

    def expected_rows(self, right: list[dict], ends: list[int]) -> tuple[list[dict], dict]:
        """The rows of log.csv, and the validation loss of each step that has one."""
        every, save_every = max(1, self.config.steps // 60), self.options.save_every
        rows, looks, since = [], {}, 0
        for step in range(1, ends[-1] + 1):
            look = step % save_every == 0 or step == self.config.steps
            if look:
                looks[step] = validate_by_hand(self.average(right[step - 1]), self.held_out,
                                               self.run["seed"], control=self.control())
            if look or step % every == 0:
                recent = right[since:step]
                good = [moment for moment in recent if moment["norm"].isfinite()]
                rows.append({
                    "step": step, "epoch": step * self.config.batch_size / len(self.ids),
                    "train_loss": np.mean([m["loss"].item() for m in good] or [np.nan]),
                    "val_loss": looks.get(step, np.nan), "lr": right[step - 1]["lr"],
                    "images_per_second": self.config.batch_size / ONE_A_STEP,
                    "gradient_norm": np.mean([m["norm"].item() for m in good] or [np.nan]),
                    "skipped_steps": len(recent) - len(good)})
                since = step
            since = step if step in ends else since
        return rows, looks

    def sheet(self, moment: dict) -> np.ndarray:
        """Ten pictures by the average, one after another, of the classes in turn."""
        model, drawn = self.average(moment), []
        for i in range(10):
            held, control = i % len(self.held_out), self.control()
            tokens = torch.from_numpy(self.held_out.ids[held, 0].astype(np.int64))
            ids = decode(model, [self.held_out.labels[held] if control else i % 3], [i], steps=1,
                         guidance=1.5, guidance_schedule="linear",
                         control=control(tokens[None]) if control else None)
            drawn.append(images.to_uint8(self.tokenizer.decode(ids.view(1, *self.sizes.grid))))
        return np.asarray(images.grid(np.concatenate(drawn), 10, zoom=24))


def check_a_run(case: dict, tolerance: float = 1e-7) -> None:
    with tempfile.TemporaryDirectory() as folder, default(torch.float64):
        run = Run(Path(folder) / "run", **case)
        ends = [*run.stops]
        for start, stop in zip([0, *ends], ends):
            run.train(start, stop)
        if run.config.steps < 20:
            run.train(ends[-1] if ends else 0)
            ends.append(run.config.steps)
        run.check(run.by_hand(ends[-1]), ends, tolerance)


# Rows come every third step of 180, and such a run ends by a signal.
ALONE = [
    dict(steps=8, batch_size=8, micro_batch=3, dropout=0.3, control=True, keep=3),
    dict(steps=180, stops=(7, 14, 21), bad=(0, 4, 16, 17), unlike=True, init=True),
    dict(steps=9, save_every=2, stops=(5,), bad=(2, 8), micro_batch=4, keep=1, dropout=0.2),
]


@for_all(len(ALONE), case=st.sampled_from(ALONE))
def test_a_run_leaves_what_its_definition_says(case):
    """Log, checkpoints, best, sheets and the returned average of a run, stopped and resumed, equal
    those of steps computed by hand.

    Broken if a row, a checkpoint or a sheet is of another step or other weights, or if a resumed
    run has forgotten something.
    """
    check_a_run(case)


TOGETHER = [
    dict(world=2, steps=6, batch_size=10, micro_batch=2, stops=(3,), bad=(1,), dropout=0.3),
    dict(world=2, shard=True, steps=4, save_every=2, batch_size=10, micro_batch=3, control=True),
]


@for_all(len(TOGETHER), case=st.sampled_from(TOGETHER))
def test_two_processes_leave_what_one_would(case):
    """The same, for two processes that accumulate gradients in unequal pieces. Sharded gradients
    are summed in float32.

    Broken if the processes do not share gradients, losses, signals or state as they should.
    """
    check_a_run(case, 1e-4 if case.get("shard") else 1e-7)


def count_sums(out: Path, micro_batch: int, shard: bool, device: torch.device) -> None:
    """In one of two processes: how often does each of three steps share its gradients? And does
    the optimizer zero them in place, where DDP sends them from?"""
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group
    model, sums, counts, kept = tiny_model(**SMALL), 0, [], True

    def hook(group, bucket, real=processes.default_hooks.allreduce_hook):
        nonlocal sums
        sums += 1
        return real(group, bucket)

    def reduce(*arguments, real=_fsdp_param_group.foreach_reduce, **how):
        nonlocal sums
        sums += 1
        return real(*arguments, **how)

    average = training.average_of(model)
    with patch.object(processes.default_hooks, "allreduce_hook", hook):
        call = processes.wrap(model, device, shard)
    if shard:
        processes.wrap(average, device, shard)
        _fsdp_param_group.foreach_reduce = reduce       # this process ends after the steps
    config = TrainConfig(steps=3, batch_size=10, micro_batch=micro_batch)
    for _ in training.train_arpg(model, call, average, FakeIds(6), config, 1,
                                 training.make_optimizer(model, 0.05, config.betas),
                                 rank=processes.rank(), world=2):
        counts.append(sums)
        kept = kept and all(p.grad is not None and (p.grad == 0).all() for p in model.parameters())
        sums = 0
    torch.save((counts, kept), out / f"counts-{processes.rank()}.pt")


@for_all(2, shard=st.booleans())
def test_gradients_are_shared_once_a_step(shard):
    """Two processes accumulate three pieces each. The model fits into one bucket of gradients.
    Sharded, each block has its own, and so has the rest.

    Broken if every piece waits for the other process, or if DDP's gradients are made anew.
    """
    once = 1 + shard * (SMALL["content_layers"] + SMALL["query_layers"])
    with tempfile.TemporaryDirectory() as folder:
        in_processes(2, count_sums, Path(folder), 2, shard)
        for rank in range(2):
            counts, kept = torch.load(Path(folder) / f"counts-{rank}.pt", weights_only=True)
            assert counts == [once] * 3, f"process {rank} shares gradients {counts} times a step"
            assert kept or shard, f"process {rank} makes its gradients anew"


class Products(TorchDispatchMode):
    """Collects the types of what is multiplied, by what it is for."""

    def __init__(self):
        super().__init__()
        self.purpose, self.types = "training", {"training": set(), "validation": set()}
        self.true_validation = training.validation_loss

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if function.__name__.split(".")[0] in ("mm", "addmm", "bmm"):
            self.types[self.purpose] |= {str(x.dtype) for x in arguments
                                         if isinstance(x, torch.Tensor)}
        return function(*arguments, **named or {})

    def validate(self, *what, **how) -> float:
        self.purpose = "validation"
        try:
            return self.true_validation(*what, **how)
        finally:
            self.purpose = "training"


class Watched(Run):
    """A run that writes down what each process multiplies. It draws nothing."""

    def member(self, *arguments) -> None:
        with Products() as products, patch.object(training, "validation_loss", products.validate), \
                patch("arpg_mini.run.saving.sheet", lambda *_: Image.new("RGB", (1, 1))):
            super().member(*arguments)
        found = {k: sorted(v) for k, v in products.types.items()}
        torch.save(found, self.out / f"products-{processes.rank()}")


@for_all(3, how=st.sampled_from([dict(), dict(precision="bfloat16"),
                                 dict(precision="bfloat16", world=2, shard=True)]))
def test_products_have_the_precision_that_was_asked_for(how):
    """With bfloat16, all matrix products of training are in bfloat16, forwards and backwards.
    Those of validation and all stored weights are in float32.

    Broken if bfloat16 is asked for and not used, or used where it was not asked for.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Watched(Path(folder) / "run", steps=1, **how)
        run.train()
        low = ["torch.bfloat16" if run.options.precision else "torch.float32"]
        for rank in range(run.world):
            found = torch.load(run.out / f"products-{rank}", weights_only=True)
            right = {"training": low, "validation": [] if rank else ["torch.float32"]}
            assert found == right, f"process {rank} multiplies {found}, not {right}"
        saved = checkpoint.load(run.out / "model.pt", "model")
        kept = {w.dtype for k in ("model", "ema") for w in saved[k].values()}
        assert kept == {torch.float32}, f"weights are kept in {kept}"


@for_all(2, steps=st.integers(5, 9), stop=st.integers(1, 4), save_every=st.integers(1, 4))
def test_a_runs_tokenizer_is_trained_to_the_end(steps, stop, save_every):
    """It is stopped by a signal after some step and continued. To the bit, it is a tokenizer that
    was trained from the run's seed without a stop.

    Broken if it is saved or continued at the wrong step, without its optimizer, or untrained.
    """
    config = TrainConfig(tokenizer_steps=steps, tokenizer_batch_size=2, tokenizer_patience=2)
    run = {"seed": 4, "train": asdict(config), "tokenizer": TOKENIZER}
    pictures, device = Pictures(noise(20), np.zeros(20), ["all"], ""), torch.device("cpu")
    torch.manual_seed(4)
    right = VQTokenizer(TokenizerConfig(**TOKENIZER))
    for _ in tokenizing.train_tokenizer(right, pictures, config, 4,
                                      training.make_optimizer(right, 0.0, config.betas)):
        pass
    signal, load, seen = processes.Stop(()), pictures.load, []

    def counted(indices):
        seen.append(len(indices))
        signal.signal = 15 if seen.count(2) == stop else 0
        return load(indices)

    with tempfile.TemporaryDirectory() as folder, patch.object(pictures, "load", counted):
        options = Namespace(out=Path(folder), save_every=save_every)
        with pytest.raises(SystemExit):
            prepare.train_tokenizer(run, options, pictures, signal, device)
        saved = checkpoint.load_tokenizer(options.out / "tokenizer.pt")[1]
        assert saved["step"] == seen.count(2) == stop, \
            f"saved as of step {saved['step']}, after {seen.count(2)}; the signal came in {stop}"
        prepare.train_tokenizer(run, options, pictures, signal, device)
        assert seen.count(2) == steps, f"{seen.count(2)} steps, not {steps}"
        tokenizer, saved = checkpoint.load_tokenizer(options.out / "tokenizer.pt")
    assert saved["step"] == saved["steps"] == steps and "optimizer" not in saved, \
        f"step {saved['step']} of {saved['steps']}"
    for name, tensor in right.state_dict().items():
        assert torch.equal(tensor, tokenizer.state_dict()[name]), f"{name} is another"
