"""What parallel steps cost in quality: orders and numbers of steps, and exact decoding beside them.

The one idea: every way to decode is a point in one plane, quality against passes of the model. All
rows draw the same classes with the same seeds.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import UserError
from ..config import ORDERS, PARALLEL_ORDERS
from ..data.builtin import FASHION_CLASSES, SHAPES, fashion_pictures
from ..data.images import to_uint8
from ..decoding import decode
from ..exact import decode_exact
from ..run import checkpoint
from ..run.command import DEVICE, Parser, exit_code, number
from ..run.drawing import check_settings
from ..run.processes import pick_device
from .bench import whole_numbers, words
from .distances import frechet_distance, moments
from .evaluation import extract
from .judge import Classifier, load_judge, shapes_scores
from .timing import Work, paired, print_table, spread

WINDOW = 16                             # of exact decoding, where a row names none
KINDS = {tuple(SHAPES): "shapes", tuple(FASHION_CLASSES): "fashion-mnist"}


class Scorer:
    """Judges pictures of one kind of data."""

    def __init__(self, kind: str, device: torch.device):
        self.kind, self.device, self.real = kind, device, None
        self.judge: Classifier = load_judge(kind, Path("runs") / f"judge-{kind}.pt").to(device)
        if kind == "fashion-mnist":
            self.real = moments(self.features(fashion_pictures("t10k").images))

    def features(self, images: np.ndarray) -> Tensor:
        return extract(self.judge.features, np.array_split(images, 20), len(images), self.device)

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> dict[str, tuple[float, float]]:
        """Each score and its standard error: class accuracy, and colour coherence of shapes or the
        judge's Fréchet distance of clothes (by bootstrap: 20 times as many pictures, drawn from
        these with replacement)."""
        n = len(images)
        if self.kind == "shapes":
            return {name: (share, (share * (1 - share) / n) ** 0.5)
                    for name, share in shapes_scores(images, labels, self.judge).items()}
        share = float((self.judge.predict(images) == labels).mean())
        features = self.features(images)
        rng = np.random.default_rng(0)
        distance, *again = (frechet_distance(*self.real, *moments(features[rows]))
                            for rows in (np.arange(n), *rng.integers(n, size=(20, n))))
        return {"class accuracy": (share, (share * (1 - share) / n) ** 0.5),
                "distance": (distance, float(np.std(again)))}


def quality(model, tokenizer, score: Scorer, options, how: dict) -> list[dict]:
    """One row per way to decode: its passes and its scores."""
    labels, n = np.arange(options.count) % model.config.num_classes, options.tokens
    ways = [(order, steps, None) for order in options.orders for steps in options.steps]
    ways += [(order, n, window) for order in options.orders
             for window in (options.windows if order == options.orders[0] else [WINDOW])]
    rows, alone = [], {}                # alone: order -> the ids of one token a step
    for order, steps, window in tqdm(ways, "ways to decode"):
        ids, passes = [], []
        for start in range(0, options.count, 250):
            part = slice(start, min(start + 250, options.count))
            if window:
                drawn, took = decode_exact(model, labels[part], range(part.start, part.stop),
                                           window, orders=order, **how)
            else:
                drawn = decode(model, labels[part], range(part.start, part.stop), steps=steps,
                               orders=order, **how)
                took = torch.full((len(drawn),), steps)
            ids.append(drawn), passes.append(took)
        ids, passes = torch.cat(ids), torch.cat(passes).double()
        if steps == n and not window:
            alone[order] = ids
        images = np.concatenate([to_uint8(tokenizer.decode(part.view(-1, *model.config.grid)))
                                 for part in ids.split(250)])
        same = (float((ids == alone[order]).all(1).double().mean())
                if window and order in alone else None)
        rows.append({"order": order, "steps": steps, "window": window, "same": same,
                     "passes": passes.mean().item(), "fewest": int(passes.min()),
                     "most": int(passes.max()), "scores": score(images, labels)})
    return rows


def speed(model, options, how: dict, device: torch.device) -> list[dict]:
    """One row per batch size and way to decode: seconds of a whole decode."""
    rows = []
    for batch in options.batch_size:
        labels = np.arange(batch) % model.config.num_classes

        def once(decoder, labels=labels, **more):
            return Work(1, lambda: iter([0] and (decoder(model, labels, range(len(labels)), **more,
                                                         **how) for _ in range(1))))
        works = {f"{steps} steps": once(decode, steps=steps) for steps in options.steps}
        works |= {f"exact, window {window}": once(decode_exact, window=window)
                  for window in options.windows}
        for name, seconds in paired(works, options.repeats, device, warm_up=1).items():
            rows.append({"batch": batch, "decoding": name, **spread(seconds.sum(1))})
    return rows


FLAGS = {"options": [
    ("--count", number(int, 200), "pictures of a row (default 2000)", 2000),
    ("--orders", words(ORDERS), "orders to draw in (default random, checkerboard and those made "
     "for parallel steps); exact decoding takes the first in all windows, the others in one",
     ["random", "checkerboard", *PARALLEL_ORDERS]),
    ("--steps", whole_numbers, "numbers of steps (default 4, 8, 12, 16 and one token a step)"),
    ("--windows", whole_numbers, "of exact decoding (default 2,4,8,16,32)", [2, 4, 8, 16, 32]),
    ("--batch-size", whole_numbers, "pictures of a timed decode (default 1,8,64)", [1, 8, 64]),
    ("--repeats", number(int, 1), "of a timed decode (default 5)", 5),
    ("--guidance", float, "constant, for all rows (default 2)", 2.0),
    ("--json", bool, "print rows as JSON"), DEVICE]}


def main() -> int:
    parser = Parser("python -m arpg_mini.measure.parallel", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a run folder of shapes or Fashion-MNIST")
    parser.add_flags(FLAGS)
    options = parser.parse_args()

    def work() -> None:
        check_settings(guidance=options.guidance)
        device = torch.device(pick_device(options.device))
        model, saved = checkpoint.load_model(options.run / "model.pt")
        tokenizer, _ = checkpoint.load_tokenizer(options.run / "tokenizer.pt")
        kind = KINDS.get(tuple(saved.get("classes", ())))
        if kind is None:
            raise UserError(f"{options.run}: its pictures are neither shapes nor Fashion-MNIST, so "
                            "there is no judge of them")
        options.tokens = n = model.config.grid[0] * model.config.grid[1]
        options.steps = options.steps or [k for k in (4, 8, 12, 16) if k < n] + [n]
        if max(options.steps) > n:
            raise UserError(f"--steps {max(options.steps)}: these images have {n} tokens, so it "
                            f"must be 1 to {n}")
        how = dict(guidance=options.guidance, guidance_schedule="constant")
        model.to(device), tokenizer.to(device)
        rows = quality(model, tokenizer, Scorer(kind, device), options, how)
        times = speed(model, options, how, device)
        if options.json:
            print(json.dumps({"quality": rows, "speed": times}, indent=1))
            return
        print_table(rows, {
            "order": "{order}", "decoding": lambda r: f"exact, window {r['window']}" if r["window"]
            else f"{r['steps']} steps", "passes": "{passes:.1f}", "fewest to most":
            "{fewest} to {most}", "as one token a step": lambda r: "" if r["same"] is None
            else f"{r['same']:.1%}", **{name: lambda r, name=name: "{:.3f} ± {:.3f}".format(
                *r["scores"][name]) for name in rows[0]["scores"]}})
        print_table(times, {"images": "{batch}", "decoding": "{decoding}",
                            "seconds": "{seconds:.3f}",
                            "fastest to slowest": "{fastest:.3f} to {slowest:.3f}"})
    return exit_code(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
