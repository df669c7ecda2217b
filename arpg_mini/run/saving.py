"""What a run leaves while it trains: its log, checkpoints, validation losses, sheets of samples.

The one idea: the first process writes the whole state, on however many processes a run trains.
"""

import contextlib
import csv
import io
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .. import UserError, training
from ..config import ModelConfig
from ..control import edges
from ..data import images
from ..data.files import also_as, write_whole
from ..data.ids import Ids
from ..decoding import decode
from ..model import ARPG
from ..tokenizer import VQTokenizer
from . import checkpoint, processes


def control_of(run: dict, tokenizer: VQTokenizer,
               grid: tuple[int, int]) -> Callable[[Tensor], Tensor] | None:
    """The function from tokens (b, N) to the condition maps of a run, or None without control."""
    if not run["control"]:
        return None
    few = max(1, 2**21 // (grid[0] * grid[1] * tokenizer.config.stride**2))

    def maps(tokens: Tensor) -> Tensor:
        return torch.cat([edges(tokenizer.decode(part.view(-1, *grid)))
                          for part in tokens.split(few)])
    return maps


def sheet(run: dict, model: ARPG, tokenizer: VQTokenizer, held_out: Ids, steps: int) -> Image.Image:
    """A row of ten to sixteen pictures, one per class, always from the same seeds. With control,
    the first held-out pictures give the maps and classes."""
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
    """The averaged weights of the run file named by --init, used for the model and its average.
    UserError if its sizes are not those of `config`; it may lack the control."""
    given, saved = checkpoint.load_model(file)
    wanted, theirs = (asdict(c) | dict(control_stride=0, dropout=0, class_dropout=0)
                      for c in (config, given.config))
    if wrong := [name for name in wanted if wanted[name] != theirs[name]]:
        raise UserError(f"--init {file}: its {wrong[0]} is {theirs[wrong[0]]}, this run's "
                        f"{wanted[wrong[0]]}")
    return {"model": saved["ema"], "ema": saved["ema"]}


class Saver:
    """Writes a run's checkpoints and reads the newest one; validates and draws before it writes.
    shard: whether `model` and `average` are spread over the processes."""

    def __init__(self, run: dict, out: Path, keep: int, shard: bool, model: ARPG, average: ARPG,
                 optimizer: torch.optim.Optimizer, held_out: Ids, tokenizer: VQTokenizer):
        self.run, self.out, self.keep, self.shard = run, out, keep, shard
        self.held_out, self.tokenizer = held_out, tokenizer
        self.model, self.average, self.optimizer = model, average, optimizer
        self.newest: int | None = None           # step of model.pt
        self.best = math.inf                     # validation loss of best.pt

    def load(self) -> int:
        """In every process: load the newest readable checkpoint, or else the weights of --init.
        Returns the step of the checkpoint, or 0."""
        saved, config = None, self.model.config

        def find() -> int:
            nonlocal saved
            same = False
            saved, wrong = checkpoint.newest(self.out)
            for why in wrong:
                print(f"skipped: {why}", file=sys.stderr)
            with contextlib.suppress(TypeError, ValueError):
                same = saved is None or ModelConfig(**saved["config"]) == config
            if not same:
                raise UserError(f"{self.out / 'model.pt'}: its sizes differ from config.json")
            with contextlib.suppress(UserError):
                self.best = checkpoint.load(self.out / "best.pt", "model", mmap=True)["best"]
            if saved and saved["best"] < self.best:      # killed before best.pt was renamed
                self.best = saved["best"]
                also_as(self.out / "model.pt", self.out / "best.pt")
            if saved is None and self.run["init"]:
                saved = {"step": 0, **starting_weights(Path(self.run["init"]), config)}
            return saved["step"] if saved else 0

        start = processes.from_first(find)
        if start or self.run["init"]:
            try:
                processes.load_state(saved, self.model, self.average,
                                     self.optimizer if start else None)
            except (KeyError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"{self.out / 'model.pt'}: does not fit this run ({reason})"
                                ) from None
        self.newest = start or None
        return start

    def whole_average(self, state: dict | None = None) -> ARPG | None:
        """The averaged model in one piece, in the first process. All processes must call it, unless
        its `state` is given: then only the first."""
        if not self.shard:
            return self.average
        state = state or processes.whole_weights(self.average)
        if processes.rank():
            return None
        whole = ARPG(self.model.config).to(next(self.tokenizer.parameters()).device).eval()
        whole.load_state_dict(state)
        return whole

    def save(self, step: int, must: bool, look: bool) -> dict[str, float]:
        """In every process: write a checkpoint. With `look`, validate and draw before. Returns the
        validation loss, if any. A file that can't be written is an error only with `must`."""
        first, better, seen = processes.rank() == 0, False, {}
        if not first and not self.shard:
            return seen
        state = processes.whole_state(self.model, self.average, self.optimizer)
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
            tqdm.write(f"{error}; training continues, the newest checkpoint is of step "
                       f"{self.newest}", sys.stderr)
        return seen

    def give_up(self, steps: int, lr: float) -> None:
        raise UserError(f"--lr {lr}: no gradient of the last {steps} steps was finite; the newest "
                        f"checkpoint is of step {self.newest}")


class Log:
    """`log.csv`: a row per logged step. Rows after the resumed step are dropped. If the disk is
    full, a row is written later, together with the next one. `tensorboard`: log there as well."""

    columns = ["step", "epoch", "train_loss", "val_loss", "lr", "images_per_second",
               "gradient_norm", "skipped_steps"]

    def __init__(self, path: Path, start: int, tensorboard: bool = False):
        self.path, self.rows, self.board = path, [], None
        if start and path.is_file():
            with open(path, newline="", encoding="utf-8", errors="replace") as file:
                with contextlib.suppress(csv.Error):     # a damaged line: the rows before it stay
                    self.rows += [row for row in csv.DictReader(file)
                                  if set(row) == set(self.columns) and None not in row.values()
                                  and row["step"].isdecimal() and len(row["step"]) < 19
                                  and int(row["step"]) <= start]
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter
            self.board = SummaryWriter(path.parent / "tensorboard", purge_step=start + 1)
        self.write()

    def write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(self.rows)
        with contextlib.suppress(UserError):
            write_whole(self.path, lambda file: file.write(text.getvalue().encode()))

    def row(self, **values) -> None:
        self.rows.append({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()})
        self.write()
        if self.board:
            for name in set(values) - {"step"}:
                if values[name] != "":
                    self.board.add_scalar(name, values[name], values["step"])
