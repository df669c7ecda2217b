"""Checkpoints of a run: when they are written, what is looked at on the way, and how one goes on.

The one idea: the first process writes all there is, put together, so that a checkpoint says nothing
of how many processes made it; and whatever fails to be written leaves what was there.
"""

import contextlib
import math
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from . import checkpoint, distributed, images, training
from .config import ModelConfig, UserError
from .decoding import decode
from .ids import Ids
from .model import ARPG
from .runs import control_of
from .tokenizer import VQTokenizer


def sheet(run: dict, model: ARPG, tokenizer: VQTokenizer, held_out: Ids, steps: int) -> Image.Image:
    """A row of ten to sixteen pictures, one a class, always from the same seeds; with a control, by
    the maps and classes of the first held-out pictures."""
    columns = min(16, max(10, len(run["classes"])))
    labels, maps = [i % len(run["classes"]) for i in range(columns)], None
    if control := control_of(run, tokenizer, model.config.grid):
        rows = np.arange(columns) % len(held_out)
        tokens = torch.from_numpy(held_out.ids[rows, 0].astype(np.int64))
        labels, maps = held_out.labels[rows], control(tokens.to(model.embedding.weight.device))
    ids = decode(model, labels, range(columns), steps=steps, guidance=run["guidance"],
                 guidance_schedule=run["guidance_schedule"], control=maps)
    pictures = images.to_uint8(tokenizer.decode(ids.view(-1, *model.config.grid)))
    return images.grid(pictures, columns, zoom=max(1, 96 // pictures.shape[1]))


def starting_weights(file: Path, config: ModelConfig) -> dict:
    """The averaged weights of the run file named by --init, in place of both kinds. UserError if
    its sizes are not those of `config`, but for a control that it lacks."""
    given, saved = checkpoint.load_model(file)
    wanted, theirs = (asdict(c) | dict(control_stride=0, dropout=0, class_dropout=0)
                      for c in (config, given.config))
    if wrong := [name for name in wanted if wanted[name] != theirs[name]]:
        raise UserError(f"--init {file}: its {wrong[0]} is {theirs[wrong[0]]}, this run's "
                        f"{wanted[wrong[0]]}")
    return {"model": saved["ema"], "ema": saved["ema"]}


class Saver:
    """Writes a run's checkpoints and reads the newest back; validates and draws on the way."""

    def __init__(self, run: dict, options, device, model: ARPG, average: ARPG,
                 optimizer: torch.optim.Optimizer, held_out: Ids, tokenizer: VQTokenizer):
        self.run, self.out, self.keep, self.shard = run, options.out, options.keep, options.shard
        self.device, self.held_out, self.tokenizer = device, held_out, tokenizer
        self.model, self.average, self.optimizer = model, average, optimizer
        self.newest: int | None = None           # step of model.pt
        self.best = math.inf                     # validation loss of best.pt

    def load(self) -> int:
        """In every process: the newest readable checkpoint, if any, else the weights of --init, if
        given. Returns the step to start after, or 0."""
        saved, config = None, self.model.config

        def find() -> int:
            nonlocal saved
            saved, wrong = checkpoint.newest(self.out)
            for why in wrong:
                print(f"skipped: {why}", file=sys.stderr)
            if saved and asdict(ModelConfig(**saved["config"])) != asdict(config):
                raise UserError(f"{self.out / 'model.pt'}: is not of the sizes in config.json")
            with contextlib.suppress(UserError):
                self.best = checkpoint.load(self.out / "best.pt", "model", mmap=True)["best"]
            if saved and saved["best"] < self.best:      # killed before it had its second name
                self.best = saved["best"]
                checkpoint.also_as(self.out / "model.pt", self.out / "best.pt")
            if saved is None and self.run["init"]:
                saved = {"step": 0, **starting_weights(Path(self.run["init"]), config)}
            return saved["step"] if saved else 0

        start = distributed.from_first(find)
        if start or self.run["init"]:
            distributed.load_state(saved, self.model, self.average,
                                   self.optimizer if start else None)
        self.newest = start or None
        return start

    def whole_average(self, state: dict | None = None) -> ARPG | None:
        """The averaged model in one piece, in the first process. To be called by all, or, where its
        `state` is at hand, by the first."""
        if not self.shard:
            return self.average
        state = state or distributed.whole_weights(self.average)
        if distributed.rank():
            return None
        whole = ARPG(self.model.config).to(self.device).eval()
        whole.load_state_dict(state)
        return whole

    def save(self, step: int, must: bool, look: bool) -> dict[str, float]:
        """In every process: write a checkpoint, with `look` validate and draw before.

        Returns what was seen. A file that can't be written is a mistake only if it `must`.
        """
        first, better, seen = distributed.rank() == 0, False, {}
        if not first and not self.shard:
            return seen
        state = distributed.whole_state(self.model, self.average, self.optimizer)
        if not first:
            return seen
        try:
            if look:
                whole = self.whole_average(state["ema"])
                control = control_of(self.run, self.tokenizer, self.model.config.grid)
                seen["val_loss"] = training.validation_loss(whole, self.held_out,
                                                            self.run["seed"], control=control)
                better = seen["val_loss"] < self.best
                n = self.held_out.ids.shape[2]
                (self.out / "samples").mkdir(exist_ok=True)
                images.save_png(self.out / "samples" / f"step-{step:08d}.png",
                                sheet(self.run, whole, self.tokenizer, self.held_out,
                                      max(1, n // 4)))
            best = seen["val_loss"] if better else self.best
            checkpoint.save_run(self.out, self.keep, better, self.newest, step=step, best=best,
                                config=asdict(self.model.config),
                                classes=self.run["classes"], guidance=self.run["guidance"],
                                guidance_schedule=self.run["guidance_schedule"], **state)
            self.newest, self.best = step, best
        except (UserError, OSError) as error:    # a full disk may have room again next time
            if must:
                raise
            tqdm.write(f"{error}; going on, the newest checkpoint is of step {self.newest}",
                       sys.stderr)
        return seen

    def give_up(self, steps: int, lr: float) -> None:
        raise UserError(f"--lr {lr}: no gradient of the last {steps} steps was finite; the newest "
                        f"checkpoint is of step {self.newest}")
