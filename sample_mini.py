"""Draw images from a trained run, or from the authors' weights; edit pictures with them.

python sample_mini.py runs/shapes --classes 3,7 --count 16 --steps 16 --guidance 3 --out samples.png
python sample_mini.py runs/shapes --count 8 --gif steps.gif
python sample_mini.py runs/shapes --npz samples.npz --count 50000
python sample_mini.py --released arpg_300m.pt --tokenizer vq_ds16_c2i.pt --classes 207,360
python sample_mini.py RUN --inpaint photo.png --box 10,10,60,60 --count 3
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
    what.add_argument("--count", type=int, help="images in all (default 40; one of each of "
                      "--classes with --released and when editing, where else it is 1)")
    what.add_argument("--seed", type=int, default=0, help="image i is made from seed + i")
    what.add_argument("--grid", help="HxW tokens, in place of the trained grid")
    what.add_argument("--expand", type=int, help="so many times the trained grid, both ways")
    what.add_argument("--control", type=Path, help="a picture whose edges to follow (runs trained "
                      "with --control edges)")
    edit = parser.add_argument_group("editing a picture, of any size: --count results")
    edit.add_argument("--inpaint", type=Path, help="picture to fill where --mask or --box says")
    edit.add_argument("--edit", type=Path, help="picture to turn into --classes there")
    edit.add_argument("--was", help="with --edit: the class it shows now, to lead away from")
    edit.add_argument("--outpaint", type=Path, help="picture to put into a larger --grid")
    edit.add_argument("--mask", type=Path, help="picture of the same size, light where to fill")
    edit.add_argument("--box", help="x0,y0,x1,y1: the rectangle of pixels to fill")
    edit.add_argument("--at", help="ROW,COL of the grid for the picture's top left (default: the "
                      "middle)")
    edit.add_argument("--feather", type=int, default=0, help="pixels of the seam to blend over")
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
    how.add_argument("--positions", default="windows", help="on larger grids: windows of the "
                     "trained size, or all at once by extrapolate, interpolate or ntk")
    how.add_argument("--within-step", default="block",
                     help="block (tokens of a step see each other) or causal")
    how.add_argument("--weights", default="ema", choices=("ema", "model"),
                     help="running average, or the newest")
    where = parser.add_argument_group("where")
    where.add_argument("--out", type=Path,
                       help="picture of all images in a grid (default samples.png, unless --npz); "
                       "when editing, the result (default edited.png)")
    where.add_argument("--gif", type=Path, help="also an animation: tokens arriving, step by step")
    where.add_argument("--npz", type=Path,
                       help="all images as arr_0, their classes as arr_1, for evaluators")
    where.add_argument("--columns", type=int, default=10, help="of the grid")
    where.add_argument("--batch-size", type=int, help="images drawn at a time (default: 100, "
                       "fewer if they are large)")
    where.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    where.add_argument("--precision", choices=("float32", "bfloat16"), help="of the model's "
                       "weights and products (default: bfloat16 for --released on cuda, "
                       "else float32)")
    where.add_argument("--gpus", type=int, default=1,
                       help="processes that share the work, one a GPU")
    where.add_argument("--compile", action="store_true", help="torch.compile the blocks and, on "
                       "cuda, replay batches as CUDA graphs: slower to start, for many images")
    return parser.parse_args(arguments)


def numbers(flag: str, text: str | None, form: str, mark: str, least: int) -> tuple | None:
    """The whole numbers of a flag's value, as many as its form has."""
    if text is None:
        return None
    words = text.split(mark)
    if len(words) != len(form.split(mark)) or not all(w.isdecimal() and int(w) >= least
                                                      and len(w) < 6 for w in words):
        raise UserError(f"{flag} {text}: must be {form}, whole numbers, {least} or more")
    return tuple(map(int, words))


def check(options) -> None:
    if (options.run is None) == (options.released is None):
        raise UserError("give a run folder or --released FILE, one of the two")
    if (options.released is None) != (options.tokenizer is None):
        raise UserError("--released FILE and --tokenizer FILE go together")
    if options.count is None:
        jobs = options.inpaint or options.edit or options.outpaint
        one_each = options.classes and (options.released or jobs)
        options.count = options.classes.count(",") + 1 if one_each else 1 if jobs else 40
    for flag, value in (("--count", options.count), ("--columns", options.columns),
                        ("--batch-size", options.batch_size), ("--gpus", options.gpus),
                        ("--expand", options.expand)):
        if value is not None and value < 1:
            raise UserError(f"{flag} {value}: must be 1 or more")
    if options.count > 10**7:
        raise UserError(f"--count {options.count}: must be at most 10 million")
    jobs = [flag for flag in ("inpaint", "edit", "outpaint") if getattr(options, flag)]
    if len(jobs) > 1 or (jobs and (options.npz or options.expand or options.control)):
        raise UserError(f"--{jobs[0]}: goes without --npz, --expand, --control, and one at a time")
    if jobs and options.out is None:
        options.out = Path("edited.png")
    needs = {"inpaint": 1, "edit": 1}.get((jobs or [None])[0], 0)
    if bool(options.mask) + bool(options.box) != needs:
        raise UserError("--mask, --box: one of the two with --inpaint and --edit, else neither")
    if jobs == ["edit"] and not options.classes:
        raise UserError("--edit: needs --classes, what to turn it into")
    if (jobs == ["outpaint"]) > bool(options.grid) or (options.expand and options.grid):
        raise UserError("--grid: --outpaint needs it; --expand goes without")
    if options.was and jobs != ["edit"]:
        raise UserError("--was: goes with --edit")
    if options.at and jobs != ["outpaint"]:
        raise UserError("--at: goes with --outpaint")
    if jobs:
        names = [f"-{i}" for i in range(1, options.count + 1)] if options.count > 1 else [""]
        options.results = [options.out.with_stem(options.out.stem + name)
                           for name in (*names, "-strip")]
    outputs = [f.resolve() for f in (*(options.results if jobs else [options.out]), options.gif,
                                     options.npz) if f]
    inputs = {f.resolve() for f in (options.released, options.tokenizer, options.inpaint,
                                    options.edit, options.outpaint, options.mask, options.control)
              if f}
    if len(set(outputs) - inputs) < len(outputs):
        raise UserError("--out, --gif, --npz: must be different files, none of them read from")
    for flag, most in (("seed", 2**62), ("feather", 10_000)):
        if not 0 <= getattr(options, flag) <= most:
            raise UserError(f"--{flag} {getattr(options, flag)}: must be 0 to {most}")
    options.grid = numbers("--grid", options.grid, "HxW", "x", 1)
    options.at = numbers("--at", options.at, "ROW,COL", ",", 0)
    options.box = numbers("--box", options.box, "x0,y0,x1,y1", ",", 0)
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


def main() -> int:
    def work() -> int | None:
        check(options)
        from arpg_mini import distributed, drawing
        device = distributed.pick_device(options.device, options.gpus)
        editing = options.inpaint or options.edit or options.outpaint
        if editing and options.gpus > 1:
            raise UserError(f"--gpus {options.gpus}: one picture is edited by one process")
        task = drawing.edit if editing else drawing.draw
        return distributed.launch(task, options.gpus, device, options)
    options = parse()
    return exit_code("sample_mini.py", work)


if __name__ == "__main__":
    sys.exit(main())
