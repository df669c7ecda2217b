"""Train a prepared run: the loop around `training.train_arpg`, and the summary at the end.

The one idea: after every step the loop only asks what is due: a row, a checkpoint, or a stop.
"""

import math
import shlex
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from .. import training
from ..config import TrainConfig
from ..data import images
from ..model import ARPG
from . import plan, processes
from .prepare import Ready
from .saving import Log, Saver, control_of, sheet


def train(run: dict, options, ready: Ready, stop: processes.Stop, device) -> ARPG | None:
    """In every process: train to the last step, or until a signal ends it. Returns the averaged
    model, in the first process."""
    if options.deterministic:
        torch.use_deterministic_algorithms(True)
    config, first = TrainConfig(**run["train"]), processes.rank() == 0
    config = replace(config, micro_batch=options.micro_batch or config.micro_batch)
    half = processes.pick_precision(options.precision, device) == torch.bfloat16
    shard = options.shard and processes.world() > 1

    torch.manual_seed(run["seed"])
    model = ARPG(ready.model).to(device)
    average = training.average_of(model)
    for block in [*model.content, *model.query]:
        block.recompute = options.recompute
        if options.compile:
            block.compile()
    call = processes.wrap(model, device, shard, half)
    if shard:
        processes.wrap(average, device, shard=True)
    optimizer = training.make_optimizer(model, config.weight_decay, config.betas)
    saver = Saver(run, options.out, options.keep, shard, model, average, optimizer, ready.held_out,
                  ready.tokenizer)
    start = saver.load()
    log = Log(options.out / "log.csv", start, options.tensorboard) if first else None

    control = control_of(run, ready.tokenizer, ready.model.grid)
    every = min(100, max(1, config.steps // 60))
    save_every = options.save_every or min(2000, max(1, config.steps // 10))
    steps = training.train_arpg(model, call, average, ready.ids, config, run["seed"], optimizer,
                                start, processes.rank(), processes.world(), half and not shard,
                                control)
    steps = plan.in_memory(
        steps, f"--micro-batch {config.micro_batch}",
        lambda: plan.fitting(ready.model, config, device, processes.world(), half=half,
                             shard=shard, recompute=options.recompute))
    bar = tqdm(steps, "arpg", config.steps, initial=start, unit="step", disable=not first)
    recent, hopeless, since = [], 0, time.perf_counter()
    for step, result in enumerate(bar, start + 1):
        last, stopping = step == config.steps, processes.any_process(bool(stop.signal))
        recent.append(torch.stack([result["loss"], result["norm"]]))
        due_save, seen = step % save_every == 0 or last, {}
        due_row = step % every == 0 or due_save
        if due_row:
            rate = len(recent) * config.batch_size / (time.perf_counter() - since)
            losses, norms = processes.mean(torch.stack(recent)).T
            good = norms.isfinite()
            skipped = len(recent) - int(good.sum())
            hopeless = hopeless + skipped if skipped == len(recent) else 0
            if skipped and first:
                tqdm.write(f"step {step}: {skipped} of the last {len(recent)} steps were skipped, "
                           "because their gradients were not finite", sys.stderr)
            if hopeless >= 20:
                processes.from_first(partial(saver.give_up, hopeless, config.lr))
        if due_save or stopping:
            seen = saver.save(step, must=last or stopping, look=due_save)
        if due_row and first:
            loss, norm = losses[good].mean().item(), norms[good].mean().item()
            log.row(step=step, epoch=step * config.batch_size / len(ready.ids), train_loss=loss,
                    val_loss=seen.get("val_loss", ""), lr=result["lr"], images_per_second=rate,
                    gradient_norm=norm, skipped_steps=skipped)
            bar.set_postfix(loss=f"{loss:.3f}", **{k: f"{v:.3f}" for k, v in seen.items()})
        if due_row:
            recent, since = [], time.perf_counter()
        if stopping and not last:
            processes.barrier()                # nobody leaves before the first has saved
            stop.leave(options.out, f"step {step}")
    whole = saver.whole_average()
    return whole if first else None


def finish(run: dict, out: Path, ready: Ready, model: ARPG | None) -> None:
    """Print the validation loss, draw the price of parallelism, and say what to do next."""
    if model:
        control = control_of(run, ready.tokenizer, model.config.grid)
        count = min(2000, len(ready.held_out))
        loss = training.validation_loss(model, ready.held_out, run["seed"], count, control=control)
        print(f"validation loss {loss:.4f} nats = {loss / math.log(2):.4f} bits per token "
              f"(fixed orders, {count} held-out pictures)")
        n = ready.held_out.ids.shape[2]
        counts = [2**i for i in range(n.bit_length()) if 2**i < n] + [n]
        rows = [sheet(run, model, ready.tokenizer, ready.held_out, steps) for steps in counts]
        captions = [f"{c} step{'s' * (c > 1)}" for c in counts]
        images.save_png(out / "samples.png", images.captioned(rows, captions))
        print(f"{out / 'samples.png'}: the same pictures in {', '.join(map(str, counts))} steps\n"
              f"next: python sample_mini.py {shlex.quote(str(out))} --count 40 "
              f"--steps {min(16, n)} --gif steps.gif")
    processes.barrier()
