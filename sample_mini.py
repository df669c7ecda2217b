"""Draw images from a trained run.

python sample_mini.py runs/shapes --classes 3,7 --count 16 --steps 16 --guidance 3 --out samples.png
python sample_mini.py runs/shapes --count 8 --gif steps.gif
python sample_mini.py runs/shapes --npz samples.npz --count 50000
"""

import sys
from pathlib import Path

from arpg_mini.config import Parser, UserError, complain

ORDERS = ("random", "raster", "column", "spiral", "outward", "checkerboard")


def parse(arguments: list[str] | None = None):
    parser = Parser("sample_mini.py", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="run folder, as train_mini.py leaves it")
    what = parser.add_argument_group("what")
    what.add_argument("--classes", help="numbers or names, with commas (default: all, in turn)")
    what.add_argument("--count", type=int, default=40, help="images in all (default 40)")
    what.add_argument("--seed", type=int, default=0, help="image i is made from seed + i")
    how = parser.add_argument_group("how")
    how.add_argument("--steps", type=int,
                     help="decoding steps, 1 to the number of tokens (default: a quarter of it)")
    how.add_argument("--schedule", default="arccos",
                     help="sizes of the steps: arccos, cosine or constant")
    how.add_argument("--guidance", type=float,
                     help="strength of classifier-free guidance (default: the run's; 1: none)")
    how.add_argument("--guidance-schedule",
                     help="linear (rises to --guidance) or constant (default: the run's)")
    how.add_argument("--temperature", type=float, default=1.0,
                     help="below 1 safer, above 1 wilder; 0: the likeliest id")
    how.add_argument("--top-k", type=int, default=0,
                     help="draw from the k likeliest ids only (0: all)")
    how.add_argument("--top-p", type=float, default=1.0,
                     help="draw from the likeliest ids that make up p (1: all)")
    how.add_argument("--order", default="random", help="order of the tokens: " + ", ".join(ORDERS))
    how.add_argument("--within-step", default="block",
                     help="block (tokens of a step see each other) or causal")
    how.add_argument("--weights", default="ema", choices=("ema", "model"),
                     help="running average, or the newest")
    where = parser.add_argument_group("where")
    where.add_argument("--out", type=Path,
                       help="picture of all images in a grid (default samples.png, unless --npz)")
    where.add_argument("--gif", type=Path, help="also an animation: tokens arriving, step by step")
    where.add_argument("--npz", type=Path,
                       help="all images as arr_0, their classes as arr_1, for evaluators")
    where.add_argument("--columns", type=int, default=10, help="of the grid")
    where.add_argument("--batch-size", type=int, default=100, help="images drawn at a time")
    where.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    where.add_argument("--gpus", type=int, default=1,
                       help="processes that share the work, one a GPU")
    return parser.parse_args(arguments)


def check(options) -> None:
    for flag, value in (("--count", options.count), ("--columns", options.columns),
                        ("--batch-size", options.batch_size), ("--gpus", options.gpus)):
        if value < 1:
            raise UserError(f"{flag} {value}: must be 1 or more")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must be 0 or more")
    if options.order not in ORDERS:
        raise UserError(f"--order {options.order}: must be one of {', '.join(ORDERS)}")
    if options.out is None and options.npz is None:
        options.out = Path("samples.png")
    if options.out and options.count > 2000:
        raise UserError(f"--count {options.count}: more than 2000 do not fit a grid; use --npz "
                        "FILE without --out")
    for flag, file in (("--out", options.out), ("--gif", options.gif), ("--npz", options.npz)):
        if file and file.is_dir():
            raise UserError(f"{flag} {file}: is a folder, not a file")
        if file and not file.parent.is_dir():
            raise UserError(f"{flag} {file}: no such folder as {file.parent}")


def pick_classes(text: str | None, names: list[str]) -> list[int]:
    """The class numbers of --classes, given by number or name."""
    if text is None:
        return list(range(len(names)))
    picked = []
    for word in text.split(","):
        if word.strip() in names:
            picked.append(names.index(word.strip()))
        elif word.strip().isdecimal() and int(word) < len(names):
            picked.append(int(word))
        else:
            known = ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
            raise UserError(f"--classes {word.strip()!r}: must be 0 to {len(names) - 1} "
                            f"or a name ({known})")
    return picked


def draw(options, device) -> None:
    """All images, in every process: each draws its part of every batch, process 0 writes."""
    import numpy as np
    from tqdm import tqdm

    from arpg_mini import checkpoint, distributed, images
    from arpg_mini.decoding import Settings, decode_steps, named_order
    if not options.run.is_dir():
        raise UserError(f"{options.run}: no such run folder; make one with train_mini.py")
    model, saved = checkpoint.load_model(options.run / "model.pt", options.weights)
    tokenizer, _ = checkpoint.load_tokenizer(options.run / "tokenizer.pt")
    model.to(device), tokenizer.to(device)
    grid, classes = model.config.grid, pick_classes(options.classes, saved["classes"])
    n = grid[0] * grid[1]
    steps = max(1, n // 4) if options.steps is None else options.steps
    if not 1 <= steps <= n:
        raise UserError(f"--steps {steps}: these images have {n} tokens, so it must be 1 to {n}")
    settings = dict(steps=steps, schedule=options.schedule,
                    guidance_schedule=options.guidance_schedule or saved["guidance_schedule"],
                    guidance=saved["guidance"] if options.guidance is None else options.guidance,
                    temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
                    within_step=options.within_step)
    if options.order != "random":
        settings["orders"] = named_order(options.order, grid)
    try:
        Settings(**settings)
    except ValueError as error:
        raise UserError(f"--{error.args[0].replace('_', '-', 1)}") from None

    def pictures(rows: range, frames: list | None = None) -> np.ndarray:
        labels = [classes[i % len(classes)] for i in rows]
        for ids in decode_steps(model, labels, [options.seed + i for i in rows], **settings):
            if frames is not None:
                known = (ids >= 0).view(-1, *grid).cpu().numpy()
                shown = images.to_uint8(tokenizer.decode(ids.clamp(min=0).view(-1, *grid)))
                frames.append(images.cover_unknown(shown, known))
        return images.to_uint8(tokenizer.decode(ids.view(-1, *grid)))

    def batches():
        rank, world = distributed.rank(), distributed.world()
        for start in tqdm(range(0, options.count, options.batch_size), "draw", disable=rank > 0):
            size = min(options.batch_size, options.count - start)
            mine = range(start + rank * size // world, start + (rank + 1) * size // world)
            part = pictures(mine) if len(mine) else None
            parts = distributed.gather(part)
            if rank == 0:
                yield np.concatenate([p for p in parts if p is not None])

    zoom = max(1, 64 // (grid[0] * tokenizer.config.stride))
    kept, done = [], batches()
    if options.out:
        kept = list(done)
        done = iter(kept)
        if distributed.rank() == 0:
            images.save_png(options.out, images.grid(np.concatenate(kept), options.columns, zoom))
            print(options.out)
    shape = (options.count, *(g * tokenizer.config.stride for g in grid), 3)
    labels = np.array([classes[i % len(classes)] for i in range(options.count)], np.int64)
    if options.npz and distributed.rank() == 0:
        images.save_npz(options.npz, done, shape, labels)
        print(f"{options.npz}: arr_0 {shape} uint8, arr_1 {labels.shape} int64")
    else:
        for _ in done:
            pass
    if options.gif and distributed.rank() == 0:
        frames: list = [np.full((min(options.count, 100), *shape[1:]), 128, np.uint8)]
        pictures(range(len(frames[0])), frames)
        images.save_gif(options.gif, [images.grid(f, options.columns, zoom) for f in frames])
        print(options.gif)


def main() -> int:
    try:
        options = parse()
        check(options)
        from arpg_mini import distributed
        distributed.launch(draw, options.gpus, distributed.pick_device(options.device), options)
        return 0
    except UserError as error:
        return complain("sample_mini.py", error)


if __name__ == "__main__":
    sys.exit(main())
