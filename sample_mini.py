"""Draw images from a trained run, or from the authors' weights.

python sample_mini.py runs/shapes --classes 3,7 --count 16 --steps 16 --guidance 3 --out samples.png
python sample_mini.py runs/shapes --count 8 --gif steps.gif
python sample_mini.py runs/shapes --npz samples.npz --count 50000
python sample_mini.py --released arpg_300m.pt --tokenizer vq_ds16_c2i.pt --classes 207,360
"""

import sys
from pathlib import Path

from arpg_mini.config import Parser, UserError, exit_code

ORDERS = ("random", "raster", "column", "spiral", "outward", "checkerboard")


def parse(arguments: list[str] | None = None):
    parser = Parser("sample_mini.py", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, nargs="?",
                        help="run folder, as train_mini.py leaves it; or --released")
    what = parser.add_argument_group("what")
    what.add_argument("--classes", help="numbers or names, with commas (default: all, in turn)")
    what.add_argument("--released", type=Path, help="the authors' ARPG weights, in place of a run")
    what.add_argument("--tokenizer", type=Path, help="the tokenizer that goes with --released")
    what.add_argument("--count", type=int, help="images in all (default 40, or one of each of "
                      "--classes with --released)")
    what.add_argument("--seed", type=int, default=0, help="image i is made from seed + i")
    how = parser.add_argument_group("how")
    how.add_argument("--steps", type=int,
                     help="decoding steps, 1 to the number of tokens (default: a quarter of it)")
    how.add_argument("--schedule", default="arccos",
                     help="sizes of the steps: arccos, cosine or constant")
    how.add_argument("--guidance", type=float,
                     help="strength of classifier-free guidance (default: the run's, or the "
                          "paper's best for the released size and --steps; 1: none)")
    how.add_argument("--guidance-schedule", help="linear (rises to --guidance) or constant "
                     "(default: the run's; linear with --released)")
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
    where.add_argument("--batch-size", type=int, help="images drawn at a time (default: 100, "
                       "fewer if they are large)")
    where.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    where.add_argument("--gpus", type=int, default=1,
                       help="processes that share the work, one a GPU")
    return parser.parse_args(arguments)


def check(options) -> None:
    if (options.run is None) == (options.released is None):
        raise UserError("give a run folder or --released FILE, one of the two")
    if (options.released is None) != (options.tokenizer is None):
        raise UserError("--released FILE and --tokenizer FILE go together")
    if options.count is None:
        one_each = options.released and options.classes
        options.count = options.classes.count(",") + 1 if one_each else 40
    for flag, value in (("--count", options.count), ("--columns", options.columns),
                        ("--batch-size", options.batch_size), ("--gpus", options.gpus)):
        if value is not None and value < 1:
            raise UserError(f"{flag} {value}: must be 1 or more")
    if options.count > 10**7:
        raise UserError(f"--count {options.count}: must be at most 10 million")
    outputs = [f.resolve() for f in (options.out, options.gif, options.npz) if f]
    inputs = {f.resolve() for f in (options.released, options.tokenizer) if f}
    if len(set(outputs) - inputs) < len(outputs):
        raise UserError("--out, --gif, --npz: must be different files, none of them read from")
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


def load(options, device):
    """The model and tokenizer asked for, the classes' names, the guidance and its schedule."""
    import torch

    from arpg_mini import checkpoint, pretrained
    if options.released:
        tokenizer = pretrained.load_any_tokenizer(options.tokenizer)[0].to(device)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        model = pretrained.load_released_arpg(options.released, dtype=dtype, device=device)
        steps = options.steps or model.config.grid[0] * model.config.grid[1] // 4
        return (model, tokenizer, list(map(str, range(model.config.num_classes))),
                pretrained.best_guidance(model.config, steps), "linear")
    if not options.run.is_dir():
        raise UserError(f"{options.run}: no such run folder; make one with train_mini.py")
    model, saved = checkpoint.load_model(options.run / "model.pt", options.weights)
    tokenizer, _ = checkpoint.load_tokenizer(options.run / "tokenizer.pt")
    return (model.to(device), tokenizer.to(device), saved["classes"], saved["guidance"],
            saved["guidance_schedule"])


def draw(options, device) -> None:
    """All images, in every process: each draws its part of every batch, process 0 writes."""
    import numpy as np
    from tqdm import tqdm

    from arpg_mini import distributed, images
    from arpg_mini.decoding import Settings, decode_steps, named_order
    model, tokenizer, names, guidance, guidance_schedule = load(options, device)
    if tokenizer.config.codebook_size != model.config.vocab_size:
        raise UserError(f"{options.tokenizer or options.run / 'tokenizer.pt'}: has "
                        f"{tokenizer.config.codebook_size} ids; the model draws "
                        f"{model.config.vocab_size}")
    grid, classes = model.config.grid, pick_classes(options.classes, names)
    n = grid[0] * grid[1]
    steps = max(1, n // 4) if options.steps is None else options.steps
    if not 1 <= steps <= n:
        raise UserError(f"--steps {steps}: these images have {n} tokens, so it must be 1 to {n}")
    settings = dict(steps=steps, schedule=options.schedule,
                    guidance_schedule=options.guidance_schedule or guidance_schedule,
                    guidance=guidance if options.guidance is None else options.guidance,
                    temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
                    within_step=options.within_step)
    if options.order != "random":
        settings["orders"] = named_order(options.order, grid)
    try:
        Settings(**settings)
    except ValueError as error:
        raise UserError(f"--{error.args[0].replace('_', '-', 1)}") from None

    side = tuple(g * tokenizer.config.stride for g in grid)
    few = min(100, max(1, 2**20 // (side[0] * side[1])))   # as many as fit in memory at once
    at_a_time = options.batch_size or few
    starts, rank, world = (range(0, options.count, at_a_time), distributed.rank(),
                           distributed.world())
    bar = tqdm(total=(len(starts) + bool(options.gif)) * steps, desc="draw", unit="step",
               disable=rank > 0)

    def pictures(rows: range, frames: list | None = None) -> np.ndarray:
        labels = [classes[i % len(classes)] for i in rows]
        for ids in decode_steps(model, labels, [options.seed + i for i in rows], **settings):
            bar.update()
            if frames is not None:
                known = (ids >= 0).view(-1, *grid).cpu().numpy()
                shown = images.to_uint8(tokenizer.decode(ids.clamp(min=0).view(-1, *grid)))
                frames.append(images.cover_unknown(shown, known))
        return images.to_uint8(tokenizer.decode(ids.view(-1, *grid)))

    def batches():
        for start in starts:
            size = min(at_a_time, options.count - start)
            mine = range(start + rank * size // world, start + (rank + 1) * size // world)
            part = pictures(mine) if len(mine) else None
            parts = distributed.gather(part)
            if rank == 0:
                yield np.concatenate([p for p in parts if p is not None])

    zoom = max(1, 64 // side[0])
    kept, done = [], batches()
    if options.out:
        kept = list(done)
        done = iter(kept)
        if distributed.rank() == 0:
            images.save_png(options.out, images.grid(np.concatenate(kept), options.columns, zoom))
            print(options.out)
    shape = (options.count, *side, 3)
    labels = np.resize(np.array(classes, np.int64), options.count)
    if options.npz and distributed.rank() == 0:
        images.save_npz(options.npz, done, shape, labels, options.seed)
        print(f"{options.npz}: arr_0 {shape} uint8, arr_1 {labels.shape} int64")
    else:
        for _ in done:
            pass
    if options.gif and distributed.rank() == 0:
        frames: list = [np.full((min(options.count, few), *shape[1:]), 128, np.uint8)]
        pictures(range(len(frames[0])), frames)
        images.save_gif(options.gif, [images.grid(f, options.columns, zoom) for f in frames])
        print(options.gif)
    bar.close()


def main() -> int:
    def work() -> int | None:
        check(options)
        from arpg_mini import distributed
        device = distributed.pick_device(options.device, options.gpus)
        return distributed.launch(draw, options.gpus, device, options)
    options = parse()
    return exit_code("sample_mini.py", work)


if __name__ == "__main__":
    sys.exit(main())
