"""Train ARPG: pictures in, a tokenizer, ids, a model, and a sheet of samples out.

    python train_mini.py                              built-in shapes, minutes on two CPU cores
    python train_mini.py --data fashion-mnist
    python train_mini.py --data FOLDER                class folders of pictures
    python train_mini.py --resume --out runs/shapes   go on with an interrupted run
    python train_mini.py --preset arpg-l --plan --gpus 8    what a run takes, without training
"""

import importlib.util
import json
import math
import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from arpg_mini.config import (
    ModelConfig,
    Parser,
    TrainConfig,
    UserError,
    describe_run,
    exit_code,
    presets,
)


def parse(arguments: list[str] | None = None):
    parser = Parser("train_mini.py", description=__doc__.split("\n")[0])
    what = parser.add_argument_group("what to train on")
    what.add_argument("--preset", help="named sizes and settings: " + ", ".join(presets()))
    what.add_argument("--data", help="shapes (default), fashion-mnist, a folder of class folders "
                      "of pictures or of ids (CLASS/NAME.npy, or codes/ and labels/), or a run "
                      "whose ids to use")
    what.add_argument("--tokenizer", type=Path,
                      help="a trained tokenizer.pt, or the released VQ-16 (default: train one)")
    what.add_argument("--control", help="edges: learn to draw by an outline too, see "
                      "sample_mini.py --control")
    what.add_argument("--init", type=Path, help="a run's model.pt to start from (fine-tuning)")
    what.add_argument("--views", help="of each picture: center, center-flip or ten-crop")
    where = parser.add_argument_group("where")
    where.add_argument("--out", type=Path, help="run folder (default: runs/PRESET)")
    where.add_argument("--resume", action="store_true", help="go on with the run in --out")
    where.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    where.add_argument("--gpus", type=int, default=1, help="processes, one a GPU; with --device "
                       "cpu: CPU ones; under torchrun: its own")
    how = parser.add_argument_group("how (default: the preset's)")
    how.add_argument("--steps", type=int, help="optimizer steps of ARPG")
    how.add_argument("--tokenizer-steps", type=int, help="optimizer steps of the tokenizer")
    how.add_argument("--batch-size", type=int, help="images a step, over all processes together")
    how.add_argument("--lr", type=float, help="peak learning rate of ARPG")
    how.add_argument("--dropout", type=float, help="of tokens, attention outputs and FFN outputs")
    how.add_argument("--side", type=int, help="pixels a side of a picture from a folder")
    how.add_argument("--seed", type=int, help="of every random choice (default 0)")
    fit = parser.add_argument_group("fitting it onto the machine (may change with --resume)")
    fit.add_argument("--micro-batch", type=int, help="images a process handles at a time; "
                     "gradients of the rest of its share are added up (default: the preset's)")
    fit.add_argument("--shard", action="store_true", help="spread weights, gradients and optimizer "
                     "over the processes (FSDP2) in place of a copy in each (DDP)")
    fit.add_argument("--recompute", action="store_true", help="activation checkpointing: keep the "
                     "blocks' inputs only, a third more work for a fraction of the memory")
    fit.add_argument("--compile", action="store_true", help="torch.compile the blocks")
    fit.add_argument("--precision", choices=("float32", "bfloat16"),
                     help="of matrix products (default: bfloat16 on cuda, float32 on cpu)")
    fit.add_argument("--deterministic", action="store_true", help="only kernels that sum in one "
                     "order, so that a resumed run is the same to the bit on CUDA too; slower")
    watch = parser.add_argument_group("saving and watching")
    watch.add_argument("--save-every", type=int, help="steps between checkpoints, validation and "
                       "sheets of samples (default: a tenth of all, at most 2000)")
    watch.add_argument("--keep", type=int, default=2, help="newest checkpoints to keep, beside the "
                       "best (default 2)")
    watch.add_argument("--tensorboard", action="store_true", help="log there too, if installed")
    plan = parser.add_argument_group("planning")
    plan.add_argument("--plan", action="store_true", help="print parameters, FLOPs, memory and "
                      "hours of the run, and stop")
    plan.add_argument("--device-tflops", type=float, default=312.0,
                      help="peak of one device (default 312: an A100's bfloat16, by data sheet)")
    plan.add_argument("--utilisation", type=float, default=0.4,
                      help="share of the peak that training reaches (default 0.4)")
    return parser.parse_args(arguments)


def open_run(run: dict, options, device):
    """The prepared run folder: held-out and training ids, and the (new) model's configuration."""
    from arpg_mini import checkpoint
    from arpg_mini.ids import Ids
    out = options.out
    try:
        ids, held_out = Ids(out / "ids" / "train"), Ids(out / "ids" / "val")
    except (OSError, ValueError) as error:
        raise UserError(f"{out / 'ids'}: not to be read from this machine ({error}); all need to "
                        "see the run folder") from None
    stored = json.loads((out / "config.json").read_text())
    run["classes"] = stored["classes"]
    tokenizer, _ = checkpoint.load_tokenizer(out / "tokenizer.pt")
    return ids, held_out, tokenizer.to(device), ModelConfig(**stored["model"])


def train(run: dict, options, device) -> int | None:
    """The whole run, in each process. Returns an exit code if a signal ended it."""
    import torch
    from tqdm import tqdm

    from arpg_mini import distributed, runs, saving, training
    from arpg_mini.model import ARPG
    out, first = options.out, distributed.rank() == 0
    stop = training.Stop(distributed.STOPPING)
    if options.deterministic:
        torch.use_deterministic_algorithms(True)
    runs.prepare(run, options, stop, device)
    ids, held_out, tokenizer, model_config = open_run(run, options, device)
    config = TrainConfig(**run["train"])
    config = replace(config, micro_batch=options.micro_batch or config.micro_batch)
    half = (options.precision or {"cuda": "bfloat16"}.get(device.type)) == "bfloat16"

    torch.manual_seed(run["seed"])
    model = ARPG(model_config).to(device)
    average = training.average_of(model)
    for block in [*model.content, *model.query]:
        block.recompute = options.recompute
        if options.compile:
            block.compile()
    options.shard = options.shard and distributed.world() > 1
    call = distributed.wrap(model, device, options.shard, half)
    if options.shard:
        distributed.wrap(average, device, shard=True)
    optimizer = training.make_optimizer(model, config.weight_decay, config.betas)
    saver = saving.Saver(run, options, device, model, average, optimizer, held_out, tokenizer)
    start = saver.load()
    log = training.Log(out / "log.csv", start, options.tensorboard) if first else None

    control = runs.control_of(run, tokenizer, model_config.grid)
    every = min(100, max(1, config.steps // 60))
    save_every = options.save_every or min(2000, max(1, config.steps // 10))
    steps = training.train_arpg(model, call, average, ids, config, run["seed"], optimizer, start,
                                distributed.rank(), distributed.world(),
                                half and not options.shard, control)
    bar = tqdm(steps, "arpg", config.steps, initial=start, unit="step", disable=not first)
    recent, hopeless, since = [], 0, time.perf_counter()
    for step, result in enumerate(bar, start + 1):
        last, stopping = step == config.steps, distributed.any_process(bool(stop.signal))
        recent.append(torch.stack([result["loss"], result["norm"]]))
        due_save, seen = step % save_every == 0 or last, {}
        due_row = step % every == 0 or due_save
        if due_row:
            rate = len(recent) * config.batch_size / (time.perf_counter() - since)
            losses, norms = distributed.mean(torch.stack(recent)).T
            good = norms.isfinite()
            skipped = len(recent) - int(good.sum())
            hopeless = hopeless + skipped if skipped == len(recent) else 0
            if skipped and first:
                tqdm.write(f"step {step}: {skipped} of the last {len(recent)} steps left out, "
                           "their gradients were not finite", sys.stderr)
            if hopeless >= 20:
                distributed.from_first(partial(saver.give_up, hopeless, config.lr))
        if due_save or stopping:
            seen = saver.save(step, must=last or stopping, look=due_save)
        if due_row and first:
            loss, norm = losses[good].mean().item(), norms[good].mean().item()
            log.row(step=step, epoch=step * config.batch_size / len(ids), train_loss=loss,
                    val_loss=seen.get("val_loss", ""), lr=result["lr"], images_per_second=rate,
                    gradient_norm=norm, skipped_steps=skipped)
            bar.set_postfix(loss=f"{loss:.3f}", **{k: f"{v:.3f}" for k, v in seen.items()})
        if due_row:
            recent, since = [], time.perf_counter()
        if stopping and not last:
            distributed.barrier()              # nobody leaves before the first has saved
            return runs.leave(out, f"step {step}", stop)
    whole = saver.whole_average()
    if first:
        finish(run, options, whole, tokenizer, held_out)
    distributed.barrier()


def finish(run: dict, options, model, tokenizer, held_out) -> None:
    """Say how good it is, draw the price of parallelism, say what to do next."""
    from arpg_mini import images, runs, saving, training
    control = runs.control_of(run, tokenizer, model.config.grid)
    loss = training.validation_loss(model, held_out, run["seed"], control=control)
    print(f"validation loss {loss:.4f} nats = {loss / math.log(2):.4f} bits per token "
          f"(fixed orders, {len(held_out)} held-out pictures)")
    n = held_out.ids.shape[2]
    counts = [2**i for i in range(n.bit_length()) if 2**i < n] + [n]
    rows = [saving.sheet(run, model, tokenizer, held_out, steps) for steps in counts]
    captions = [f"{c} step{'s' * (c > 1)}" for c in counts]
    images.save_png(options.out / "samples.png", images.captioned(rows, captions))
    print(f"{options.out / 'samples.png'}: the same pictures in "
          f"{', '.join(map(str, counts))} steps\n"
          f"next: python sample_mini.py {options.out} --count 40 --steps 16 --gif steps.gif")


def main() -> int:
    def work() -> int | None:
        run = describe_run(options)
        if options.plan:
            from arpg_mini import plan
            return print(plan.describe(run, options))
        if options.deterministic:               # read when CUDA starts
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if options.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise UserError("--tensorboard: needs that package; pip install tensorboard")
        from arpg_mini import distributed
        device = distributed.pick_device(options.device, options.gpus)
        return distributed.launch(train, options.gpus, device, run, options)
    options = parse()
    return exit_code("train_mini.py", work)


if __name__ == "__main__":
    sys.exit(main())
