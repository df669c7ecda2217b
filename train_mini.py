"""Train ARPG: pictures in, a tokenizer, ids, a model, and a sheet of samples out.

    python train_mini.py                              built-in shapes, minutes on two CPU cores
    python train_mini.py --data fashion-mnist
    python train_mini.py --data FOLDER                class folders of pictures
    python train_mini.py --resume --out runs/shapes   go on with an interrupted run
"""

import dataclasses
import json
import math
import sys
import time
from pathlib import Path

from arpg_mini.config import (
    ModelConfig,
    Parser,
    TokenizerConfig,
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
    what.add_argument("--data", help="shapes (default), fashion-mnist, or a folder of classes")
    what.add_argument("--tokenizer", type=Path,
                      help="a trained tokenizer.pt, or the released VQ-16 (default: train one)")
    where = parser.add_argument_group("where")
    where.add_argument("--out", type=Path, help="run folder (default: runs/PRESET)")
    where.add_argument("--resume", action="store_true", help="go on with the run in --out")
    where.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    where.add_argument("--gpus", type=int, default=1,
                       help="processes, one a GPU; with --device cpu: CPU ones")
    how = parser.add_argument_group("how (default: the preset's)")
    how.add_argument("--steps", type=int, help="optimizer steps of ARPG")
    how.add_argument("--tokenizer-steps", type=int, help="optimizer steps of the tokenizer")
    how.add_argument("--batch-size", type=int, help="images a step, over all processes together")
    how.add_argument("--lr", type=float, help="peak learning rate of ARPG")
    how.add_argument("--dropout", type=float, help="of tokens, attention outputs and FFN outputs")
    how.add_argument("--side", type=int, help="pixels a side of a picture from a folder")
    how.add_argument("--seed", type=int, help="of every random choice (default 0)")
    how.add_argument("--save-every", type=int, help="steps between saves (default: a tenth of all)")
    return parser.parse_args(arguments)


def load_pictures(run: dict):
    """Training and held-out pictures."""
    from arpg_mini import data
    if run["data"] == "shapes":
        seed = 2 * run["seed"]
        return data.shapes_pictures(40_000, seed), data.shapes_pictures(2000, seed + 1)
    if run["data"] == "fashion-mnist":
        return data.fashion_pictures("train"), data.fashion_pictures("t10k")
    folder = Path(run["data"])
    if list(folder.glob("train-images-idx3-ubyte*")):
        return data.fashion_pictures("train", folder), data.fashion_pictures("t10k", folder)
    return data.folder_pictures(folder, run["side"])


def get_tokenizer(run: dict, out: Path, pictures, options, stop, device):
    """The tokenizer of a run: the named one, the folder's finished one, or a newly trained one."""
    import torch
    from tqdm import tqdm

    from arpg_mini import checkpoint, pretrained, training
    from arpg_mini.tokenizer import VQTokenizer
    path, config = out / "tokenizer.pt", TrainConfig(**run["train"])
    if run["tokenizer_file"]:
        if not path.exists():
            tokenizer, _ = pretrained.load_any_tokenizer(Path(run["tokenizer_file"]))
            checkpoint.save_tokenizer(path, tokenizer)
        return checkpoint.load_tokenizer(path)[0].to(device)
    torch.manual_seed(run["seed"])
    tokenizer, start, state = VQTokenizer(TokenizerConfig(**run["tokenizer"])), 0, None
    if path.exists():
        tokenizer, saved = checkpoint.load_tokenizer(path)
        start, state = saved["step"], saved.get("optimizer")
    tokenizer.to(device)
    optimizer = training.make_optimizer(tokenizer, 0.0, config.betas)
    if state:
        optimizer.load_state_dict(state)
    bar = tqdm(training.train_tokenizer(tokenizer, pictures, config, run["seed"], optimizer, start),
               "tokenizer", config.tokenizer_steps, initial=start, unit="step")
    save_every = options.save_every or max(1, config.tokenizer_steps // 10)
    for step, losses in enumerate(bar, start + 1):
        if step % 20 == 0:
            bar.set_postfix({k: f"{v.item():.4f}" for k, v in losses.items()})
        last = step == config.tokenizer_steps
        if last or stop.signal or step % save_every == 0:
            checkpoint.save_tokenizer(path, tokenizer, step=step, steps=config.tokenizer_steps,
                                      **({} if last else {"optimizer": optimizer.state_dict()}))
        if stop.signal:
            raise SystemExit(leave(out, step, stop))
    return tokenizer.eval()


def leave(out: Path, step: int, stop) -> int:
    print(f"stopped by a signal after step {step}, saved; go on with: "
          f"python train_mini.py --resume --out {out}", file=sys.stderr)
    return 128 + stop.signal


def get_ids(run: dict, options, stop, device) -> None:
    """Leave `config.json`, `tokenizer.pt`, `ids/train` and `ids/val` in the run folder."""
    from arpg_mini import checkpoint, data, pretrained, training
    out = options.out
    pictures, held_out = load_pictures(run)
    _, sample = pictures.load(range(min(64, len(pictures))))
    if not len(sample):
        raise UserError(f"{next(iter(pictures.bad))}: no readable picture, nor are the next 63")
    stride = TokenizerConfig(**run["tokenizer"]).stride
    if run["tokenizer_file"]:
        mine = out / "tokenizer.pt"
        file = mine if mine.exists() else Path(run["tokenizer_file"])
        tokenizer, saved = pretrained.load_any_tokenizer(file)
        if saved.get("step", 0) < saved.get("steps", 0):
            raise UserError(f"--tokenizer {file}: is only half trained")
        stride = tokenizer.config.stride
    if sample.shape[1] % stride:
        raise UserError(f"--side {sample.shape[1]}: must be a multiple of the tokenizer's stride, "
                        f"{stride}")
    if run.get("classes", pictures.classes) != pictures.classes:
        raise UserError(f"--data {run['data']}: its classes are no longer those that the run in "
                        f"{out} was started with")
    run["classes"], run["model"]["num_classes"] = pictures.classes, len(pictures.classes)
    if not (out / "config.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(run, indent=1).encode()
        checkpoint.write_whole(out / "config.json", lambda file: file.write(text))
    tokenizer = get_tokenizer(run, out, pictures, options, stop, device)

    def encode(images):
        return tokenizer.encode(training.to_device(images, device)).flatten(1).cpu().numpy()

    for part, which in (("train", pictures), ("val", held_out)):
        data.encode_pictures(which, encode, out / "ids" / part, checkpoint.fingerprint(tokenizer),
                             mirror=run["mirror"] and part == "train")
        for file, why in which.bad.items():
            print(f"left out: {file}: {why}", file=sys.stderr)


def train(run: dict, options, device) -> None:
    """The whole run, in each process."""
    import torch
    from tqdm import tqdm

    from arpg_mini import checkpoint, data, distributed, training
    from arpg_mini.model import ARPG
    out, stop, first = options.out, training.Stop(), distributed.rank() == 0
    config, seed = TrainConfig(**run["train"]), run["seed"]
    if first:                                  # little work next to the rest: one process does it
        get_ids(run, options, stop, device)
    distributed.barrier()
    classes = json.loads((out / "config.json").read_text())["classes"]
    ids, held_out = data.Ids(out / "ids" / "train"), data.Ids(out / "ids" / "val")
    tokenizer, _ = checkpoint.load_tokenizer(out / "tokenizer.pt")
    side = math.isqrt(ids.ids.shape[2])        # pictures are square
    torch.manual_seed(seed)
    model = ARPG(ModelConfig(**{**run["model"], "num_classes": len(classes), "grid": (side, side),
                                "vocab_size": tokenizer.config.codebook_size})).to(device)
    average, start, saved = training.average_of(model), 0, None
    if (out / "model.pt").exists():
        _, saved = checkpoint.load_model(out / "model.pt")
        start = saved["step"]
        checkpoint.fill(model, saved["model"], out / "model.pt")
        checkpoint.fill(average, saved["ema"], out / "model.pt")
    optimizer = training.make_optimizer(model, config.weight_decay, config.betas)
    if saved:
        optimizer.load_state_dict(saved["optimizer"])

    def save(step: int) -> None:
        if first:
            checkpoint.save(out / "model.pt", "model", config=dataclasses.asdict(model.config),
                            model=model.state_dict(), ema=average.state_dict(), step=step,
                            optimizer=optimizer.state_dict(), classes=classes,
                            guidance=run["guidance"], guidance_schedule=run["guidance_schedule"])

    log = training.Log(out / "log.csv", start) if first else None
    every, save_every = max(1, config.steps // 60), options.save_every or max(1, config.steps // 10)
    steps = training.train_arpg(model, distributed.wrap(model), average, ids, config, seed,
                                optimizer, start, distributed.rank(), distributed.world())
    bar = tqdm(steps, "arpg", config.steps, initial=start, unit="step", disable=not first)
    losses, since = [], time.perf_counter()
    for step, result in enumerate(bar, start + 1):
        last, stopping = step == config.steps, distributed.any_process(bool(stop.signal), device)
        losses.append(result["loss"])
        due_row = step % every == 0 or last
        loss = distributed.mean(torch.stack(losses).mean()).item() if due_row else None
        if due_row and first:
            rate = len(losses) * config.batch_size / (time.perf_counter() - since)
            due = last or step % (10 * every) == 0
            val = training.validation_loss(average, held_out, seed) if due else ""
            log.row(step=step, epoch=step * config.batch_size / len(ids), train_loss=loss,
                    val_loss=val, lr=result["lr"], images_per_second=rate)
            bar.set_postfix(loss=f"{loss:.3f}", **({"val": f"{val:.3f}"} if due else {}))
        if due_row:
            losses, since = [], time.perf_counter()
        if last or stopping or step % save_every == 0:
            save(step)
        if stopping:
            distributed.barrier()              # nobody leaves before the first has saved
            raise SystemExit(leave(out, step, stop) if first else 128 + stop.signal)
    if first:
        finish(run, options, average, tokenizer.to(device), held_out)


def finish(run: dict, options, model, tokenizer, held_out) -> None:
    """Say how good it is, draw the price of parallelism, say what to do next."""
    from arpg_mini import images, training
    from arpg_mini.decoding import decode
    loss = training.validation_loss(model, held_out, run["seed"])
    print(f"validation loss {loss:.4f} nats = {loss / math.log(2):.4f} bits per token "
          f"(fixed orders, {len(held_out)} held-out pictures)")
    n, columns = held_out.ids.shape[2], min(16, max(10, len(run["classes"])))
    labels = [i % len(run["classes"]) for i in range(columns)]
    counts = [2**i for i in range(n.bit_length()) if 2**i < n] + [n]
    rows = []
    for steps in counts:
        ids = decode(model, labels, range(columns), steps=steps, guidance=run["guidance"],
                     guidance_schedule=run["guidance_schedule"])
        pictures = images.to_uint8(tokenizer.decode(ids.view(-1, *model.config.grid)))
        rows.append(images.grid(pictures, columns, zoom=max(1, 96 // pictures.shape[1])))
    captions = [f"{c} step{'s' * (c > 1)}" for c in counts]
    images.save_png(options.out / "samples.png", images.captioned(rows, captions))
    print(f"{options.out / 'samples.png'}: the same {columns} pictures in "
          f"{', '.join(map(str, counts))} steps\n"
          f"next: python sample_mini.py {options.out} --count 40 --steps 16 --gif steps.gif")


def main() -> int:
    def work() -> None:
        run = describe_run(options)
        from arpg_mini import distributed
        device = distributed.pick_device(options.device)
        distributed.launch(train, options.gpus, device, run, options)
    options = parse()
    return exit_code("train_mini.py", work)


if __name__ == "__main__":
    sys.exit(main())
