"""The flags of sample_mini.py, and which of them contradict each other.

The one idea: every flag is checked before anything is loaded. (This file does not import torch, so
that `--help` and mistakes are answered at once.)
"""

import argparse
import sys
import unicodedata
from pathlib import Path

from .. import UserError
from ..config import GUIDANCE_SCHEDULES, ORDERS, POSITIONS, SCHEDULES, WITHIN_STEP
from .command import DEVICE, PRECISION, Parser, check_output, number, numbers

COUNT = number(int, 1)
FLAGS = {
    "what": [
        ("--classes", str, "numbers or names, separated by commas (default: all, in turn)"),
        ("--released", Path, "the authors' ARPG weights, in place of a run"),
        ("--tokenizer", Path, "the tokenizer that goes with --released"),
        ("--count", number(int, 1, 10**7), "images in all (default 40; with --released or when "
         "editing: one per class of --classes, or 1 edit)"),
        ("--seed", number(int, 0, 2**62), "image i is drawn from seed + i", 0),
        ("--grid", numbers("HxW", 1), "HxW tokens, in place of the trained grid"),
        ("--expand", COUNT, "draw this many times the trained grid, both ways"),
        ("--control", Path, "a picture whose edges to follow (runs trained with --control edges)")],
    "editing a picture, of any size: --count results": [
        ("--inpaint", Path, "picture to fill under --mask or --box"),
        ("--edit", Path, "picture to turn into --classes there"),
        ("--was", str, "with --edit: the class it shows now, which guidance avoids"),
        ("--outpaint", Path, "picture to put into a larger --grid"),
        ("--mask", Path, "picture of the same size, light where to fill"),
        ("--box", numbers("x0,y0,x1,y1", 0), "x0,y0,x1,y1: the rectangle of pixels to fill"),
        ("--at", numbers("ROW,COL", 0), "ROW,COL of the grid for the picture's top left (default: "
         "the middle)"),
        ("--feather", number(int, 0, 10_000), "pixels of the seam to blend over", 0)],
    "how": [
        ("--steps", int, "decoding steps, 1 to the number of tokens (default: a quarter of them)"),
        ("--exact", bool, "draw the images of one token a step, in fewer passes: guess many tokens "
         "and check them at once"),
        ("--window", COUNT, "with --exact: tokens to ask for in a pass (default 16)"),
        ("--schedule", SCHEDULES, "sizes of the steps (default: arccos)"),
        ("--guidance", float, "strength of classifier-free guidance (default: the run's, or the "
         "paper's best for the released size and --steps; 1: none)"),
        ("--guidance-schedule", GUIDANCE_SCHEDULES, "linear rises to --guidance (default: the "
         "run's, linear with --released)"),
        ("--temperature", float, "below 1: less varied, above 1: more varied; 0: the likeliest id",
         1.0),
        ("--top-k", int, "draw only from the k likeliest ids (0: all)", 0),
        ("--top-p", float, "draw from the likeliest ids whose total reaches p (1: all)", 1.0),
        ("--order", ORDERS, "order of the tokens; the last four choose those that share a step",
         "random"),
        ("--positions", ("windows", *POSITIONS), "on larger grids: windows of the trained size, or "
         "one window with other rotations", "windows"),
        ("--within-step", WITHIN_STEP, "block: the tokens of a step see each other (default: "
         "block)"),
        ("--weights", ("ema", "model"), "the running average, or the newest weights", "ema")],
    "where": [
        ("--out", Path, "picture of all images in a grid (default samples.png, unless --npz); when "
         "editing, the result (default edited.png)"),
        ("--gif", Path, "also write an animation of the tokens arriving, step by step"),
        ("--npz", Path, "all images as arr_0, their classes as arr_1, for evaluators"),
        ("--columns", COUNT, "of the grid", 10),
        ("--batch-size", COUNT, "images that each process draws at a time (default: 100, fewer if "
         "they are large: of 256×256 pixels 64 on cuda, 16 elsewhere)"),
        DEVICE,
        ("--precision", PRECISION, "of the weights (default: bfloat16 on cuda, if it has it)"),
        ("--gpus", COUNT, "processes that share the work, one per GPU", 1),
        ("--compile", bool, "torch.compile the blocks and, on cuda, replay batches as CUDA graphs: "
         "slow to start, fast for many images")]}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags of sample_mini.py, as given."""
    parser = Parser("sample_mini.py", description="Draw images from a trained run, or from the "
                    "authors' weights; edit pictures with them.")
    parser.add_argument("run", type=Path, nargs="?",
                        help="run folder, as train_mini.py leaves it; or --released")
    parser.add_flags(FLAGS)
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    """Check the flags, and fill in what depends on others. UserError names the flag that is wrong.
    """
    if (options.run is None) == (options.released is None):
        raise UserError("give a run folder or --released FILE, one of the two")
    if (options.released is None) != (options.tokenizer is None):
        raise UserError("--released FILE and --tokenizer FILE go together")
    jobs = [flag for flag in ("inpaint", "edit", "outpaint") if getattr(options, flag)]
    if len(jobs) > 1 or (jobs and (options.npz or options.expand or options.control)):
        raise UserError(f"--{jobs[0]}: goes without --npz, --expand, --control, and one at a time")
    options.job = jobs[0] if jobs else None
    if jobs and options.out is None:
        options.out = Path("edited.png")
    if jobs and options.gpus > 1:
        raise UserError(f"--gpus {options.gpus}: one process edits one picture")
    needs = {"inpaint": 1, "edit": 1}.get((jobs or [None])[0], 0)
    if bool(options.mask) + bool(options.box) != needs:
        raise UserError("--mask, --box: one of the two with --inpaint and --edit, else neither")
    if jobs == ["edit"] and not options.classes:
        raise UserError("--edit: needs --classes, what to turn it into")
    if (jobs == ["outpaint"]) > bool(options.grid) or (options.expand and options.grid):
        raise UserError("--grid: --outpaint needs it; --expand goes without")
    if options.window and not options.exact:
        raise UserError(f"--window {options.window}: goes with --exact")
    if options.exact and (flag := next((f for f in ("steps", "schedule", "within_step")
                                        if getattr(options, f) is not None), None)):
        raise UserError(f"--{flag.replace('_', '-')} {getattr(options, flag)}: goes without "
                        "--exact, which draws what one token a step draws")
    if options.was and jobs != ["edit"]:
        raise UserError("--was: goes with --edit")
    if options.at and jobs != ["outpaint"]:
        raise UserError("--at: goes with --outpaint")
    if options.out is None and options.npz is None:
        options.out = Path("samples.png")
    for flag, file, ending in (("--out", options.out, ".png"), ("--gif", options.gif, ".gif"),
                               ("--npz", options.npz, ".npz")):
        if file:
            check_output(flag, file, ending)


def settle(options: argparse.Namespace, names: list[str]) -> None:
    """What depends on the names of the model's classes: turn --classes and --was into numbers, and
    fill in --count and the files of results. UserError names the flag that is wrong."""
    given, edits = options.classes is not None, bool(options.job)
    options.classes = pick_classes("--classes", options.classes, names) if given else None
    options.was = pick_classes("--was", options.was, names) if options.was is not None else None
    if options.count is None:
        one_each = given and (options.released or edits)
        options.count = len(options.classes) if one_each else 1 if edits else 40
    if edits:
        ends = [f"-{i}" for i in range(1, options.count + 1)] if options.count > 1 else [""]
        options.results = [options.out.with_stem(options.out.stem + end)
                           for end in (*ends, "-strip")]
    outputs = [f.resolve() for f in (*(options.results if edits else [options.out]), options.gif,
                                     options.npz) if f]
    inputs = {f.resolve() for f in (options.released, options.tokenizer, options.inpaint,
                                    options.edit, options.outpaint, options.mask, options.control)
              if f}
    if len(set(outputs) - inputs) < len(outputs):
        raise UserError("--out, --gif, --npz: must be different files, none of them read from")
    if options.out and options.count > 2000:
        raise UserError(f"--count {options.count}: more than 2000 do not fit a grid; use --npz "
                        "FILE without --out")


def pick_classes(flag: str, text: str, names: list[str]) -> list[int]:
    """The class numbers that a flag gives by number or name, separated by commas. A name may hold
    commas itself, and its accents may be stored in either of Unicode's two ways."""
    def plain(name: str) -> str:
        return ",".join(part.strip() for part in unicodedata.normalize("NFC", name).split(","))

    by_name, words, picked = {plain(name): i for i, name in enumerate(names)}, text.split(","), []
    longest = max(name.count(",") for name in names) + 1
    while words:
        for count in range(min(longest, len(words)), 0, -1):
            word = plain(",".join(words[:count]))
            if word.isdecimal() and len(word) < 9 and int(word) < len(names):
                picked.append(int(word))
                if by_name.get(word, picked[-1]) != picked[-1]:
                    print(f"{flag} {word}: taken as the number of class {names[picked[-1]]!r}; the "
                          f"class named {word!r} has number {by_name[word]}", file=sys.stderr)
            elif word in by_name:
                picked.append(by_name[word])
            else:
                continue
            words = words[count:]
            break
        else:
            known = ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
            raise UserError(f"{flag} {words[0].strip()!r}: must be 0 to {len(names) - 1} or a name "
                            f"({known})")
    return picked
