"""The paper's ablations at small size: which of its choices matter on shapes, and how much?

    python -m tutorial.claims                    all tables: 49 minutes on two busy cores
    python -m tutorial.claims --quick            about four minutes on two cores
    python -m tutorial.claims --only guidance    one table

One tokenizer encodes the built-in shapes once. Then every model is trained from three seeds, for
the same number of steps on the same ids. Every number is a mean over the seeds with its standard
error. A seed sets the initial weights, the batches, the orders and the drawing noise; the rows of a
table use the same seeds. Finished parts are saved, so an interrupted run continues with the rest.
"""

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from arpg_mini import ARPG, UserError, VQTokenizer, decode, training
from arpg_mini.attention import Cache, Linear, append, rotate
from arpg_mini.config import ModelConfig
from arpg_mini.data.builtin import shapes, shapes_pictures
from arpg_mini.data.files import write_whole
from arpg_mini.data.ids import Ids
from arpg_mini.data.images import to_uint8
from arpg_mini.measure.evaluation import bits_per_token
from arpg_mini.measure.judge import shapes_scores, train_classifier
from arpg_mini.orders import named_order
from arpg_mini.run import checkpoint, tokenizing
from arpg_mini.run.command import Parser, exit_code
from arpg_mini.run.presets import presets

SEEDS = 0, 1, 2
RESULTS = Path(__file__).parent / "results.json"
GUIDED = dict(steps=16, guidance=2.0, guidance_schedule="constant")     # unless a row differs


@dataclass(frozen=True)
class Size:
    """The amount of training and drawing."""
    pictures: int               # for training
    tokenizer_steps: int
    judge_steps: int            # of the classifier that reads classes, 128 pictures per step
    steps: int                  # of every model
    batch: int                  # pictures per step
    width: int                  # D of every model; the hidden width of its FFNs is twice as large
    drawn: int                  # pictures per row and seed


FULL = Size(20_000, 600, 600, 1200, 64, 128, 500)
QUICK = Size(4_000, 150, 300, 500, 32, 64, 100)


class PerLayerKV(ARPG):
    """A variant of ARPG: every query layer has its own keys and values. For L_q layers they are
    stacked, (L_q, B, H, S, K); the shared ones of ARPG are (B, H, S, K)."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.kv = Linear(config.dim, 2 * config.dim * config.query_layers)
        self.reset_parameters()

    def read(self, ids: Tensor, where: Tensor, mask: Tensor | None = None, causal: bool = False,
             cache: Cache | None = None, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        layers, own = len(self.content), len(self.query)
        if cache is not None and cache.length == 0:             # empty, made for one shared pair
            cache.pairs = cache.pairs.new_empty(layers + own, *cache.pairs.shape[1:])
        x = nn.functional.dropout(self.embedding(ids), dropout)                 # (B, S, D)
        for i, block in enumerate(self.content):
            past = None if cache is None else cache.layer(i)
            x = block(x, where, mask=mask, causal=causal, past=past, dropout=dropout)
        pairs = self.kv(self.kv_norm(x)).unflatten(-1, (own, 2, self.config.heads, -1))
        found = [(rotate(k, where).transpose(1, 2), v.transpose(1, 2))          # (B, H, S, K) each
                 for k, v in (pair.unbind(2) for pair in pairs.unbind(2))]
        if cache is not None:
            found = [append(*cache.layer(layers + i), *pair) for i, pair in enumerate(found)]
            cache.advance(ids.shape[1])
        keys, values = zip(*found)
        return torch.stack(keys), torch.stack(values)                           # (L_q, B, H, S, K)

    def ask(self, where: Tensor, keys: Tensor, values: Tensor, causal: bool = False,
            dropout: float = 0.0, hints: Tensor | None = None) -> Tensor:
        x = self.embedding.weight[self.mask_id].view(1, 1, -1)
        for block, k, v in zip(self.query, keys, values):
            x = block(x, where, k, v, causal=causal, dropout=dropout)           # (B, M, D)
        return self.norm(x)


KINDS = {"3+3": (ARPG, 3, 3), "5+1": (ARPG, 5, 1), "1+5": (ARPG, 1, 5),
         "per layer": (PerLayerKV, 3, 3)}       # content + query layers


class Encoded(Ids):
    """Pictures as ids in memory. (`Ids` reads them from files.)"""

    def __init__(self, tokenizer: VQTokenizer, images: np.ndarray, labels: np.ndarray):
        batches = tokenizing.to_device(images, torch.device("cpu")).split(250)
        ids = torch.cat([tokenizer.encode(batch).flatten(1) for batch in batches])
        self.ids, self.labels = ids[:, None].numpy().astype(np.uint16), labels


class Bench:
    """What the tables share: tokenizer, judge, ids, models. Each is made at its first use."""

    def __init__(self, size: Size, folder: Path):
        self.size, self.folder, self.preset = size, folder, presets()["shapes"]
        self.config = replace(self.preset.train, steps=size.steps, batch_size=size.batch,
                              micro_batch=size.batch, tokenizer_steps=size.tokenizer_steps)

    def kept(self, name: str, module: nn.Module, make: Callable) -> nn.Module:
        """`module` with its weights from the folder; without a file, `make` it and save it."""
        path = self.folder / f"{name.replace(' ', '-')}.pt"
        if path.exists():
            checkpoint.fill(module, checkpoint.load(path, "claims")["state"], path)
        else:
            module = make(module)
            checkpoint.save(path, "claims", state=module.state_dict())
        return module.eval()

    def train(self, name: str, loop: Callable, module: nn.Module, *arguments, steps: int) -> None:
        """Run a training loop of the package, which yields after each step, to its end."""
        optimizer = training.make_optimizer(module, self.config.weight_decay, self.config.betas)
        for _ in tqdm(loop(module, *arguments, optimizer), name, steps, leave=False):
            pass

    @cached_property
    def tokenizer(self) -> VQTokenizer:
        def make(tokenizer):
            self.train("tokenizer", tokenizing.train_tokenizer, tokenizer, shapes_pictures(
                self.size.pictures, 0), self.config, 0, steps=self.config.tokenizer_steps)
            return tokenizer
        torch.manual_seed(0)
        return self.kept("tokenizer", VQTokenizer(self.preset.tokenizer), make)

    judge = cached_property(lambda self: train_classifier(
        *shapes(min(8000, 2 * self.size.pictures), seed=1_000_003), self.size.judge_steps))
    ids = cached_property(lambda self: Encoded(self.tokenizer, *shapes(self.size.pictures, 0)))
    held_out = cached_property(
        lambda self: Encoded(self.tokenizer, *shapes(min(2000, self.size.pictures // 4), 1)))

    def model(self, kind: str, seed: int) -> ARPG:
        """Train a model from `seed`; returns the running average of its weights."""
        def make(model):
            average = training.average_of(model)
            self.train(f"{kind}, seed {seed}", training.train_arpg, model, model, average,
                       self.ids, self.config, seed, steps=self.config.steps)
            return average
        build, content, query = KINDS[kind]
        sizes = replace(self.preset.model, content_layers=content, query_layers=query,
                        dim=self.size.width, ffn_hidden=2 * self.size.width)
        torch.manual_seed(seed)
        return self.kept(f"{kind} {seed}", build(sizes), make)

    def scores(self, model: ARPG, seed: int, **settings) -> dict[str, float]:
        """Draw pictures with the settings; returns their class accuracy and colour coherence."""
        labels, first = np.arange(self.size.drawn) % 10, 100_000 * seed
        ids = decode(model, labels, range(first, first + len(labels)), **GUIDED | settings)
        images = to_uint8(self.tokenizer.decode(ids.view(-1, *model.config.grid)))
        accuracy, coherence = shapes_scores(images, labels, self.judge).values()
        return {"accuracy": accuracy, "coherence": coherence}


# Table -> its subject and its rows; row -> which model, and the settings of its decode.
TABLES: dict[str, tuple[str, dict[str, tuple[str, dict]]]] = {
    "steps": ("steps, and whether the tokens of a step see each other", {
        f"{t} {within}": ("3+3", dict(steps=t, within_step=within))
        for t in (1, 2, 4, 8, 16, 36) for within in ("block", "causal")}),
    "orders": ("order of drawing and steps; nats with one token per step", {
        f"{order} {t}": ("3+3", dict(orders=order, steps=t))
        for order in ("raster", "spiral", "random") for t in (8, 16, 36)}),
    "split": ("six layers: how many read (content) + how many ask (query)", {
        kind: (kind, {}) for kind in ("3+3", "5+1", "1+5")}),
    "sharing": ("keys and values: shared by all query layers (3+3), or one pair per layer", {
        kind: (kind, {}) for kind in ("3+3", "per layer")}),
    "guidance": ("guidance at 16 steps; last two rows: constant 2, with temperature or top-p", {
        f"{how} {s:g}": ("3+3", dict(guidance=s, guidance_schedule=how))
        for how, s in [("constant", s) for s in (1.0, 1.5, 2.0, 3.0, 5.0)]
        + [("linear", s) for s in (2.0, 3.0, 5.0, 9.0)]}
        | {"temperature 0.7": ("3+3", dict(temperature=0.7)),
           "top-p 0.9": ("3+3", dict(top_p=0.9))}),
    "schedule": ("how tokens are spread over the steps", {
        f"{name} {t}": ("3+3", dict(schedule=name, steps=t))
        for t in (4, 8, 16) for name in ("constant", "cosine", "arccos")}),
}


def measure(bench: Bench, seed: int, kind: str, settings: dict) -> dict[str, float]:
    """A row. `pairs`: how many pairs of keys and values are kept for every token."""
    model, order = bench.model(kind, seed), None
    if settings.get("orders", "random") != "random":
        order = named_order(settings["orders"], model.config.grid)
    row = bench.scores(model, seed, **settings | {"orders": order})
    if not settings or settings == dict(orders=settings.get("orders"), steps=36):
        row["nats"] = math.log(2) * bits_per_token(model, bench.held_out, order)[0]
    if not settings:
        row["million weights"] = sum(p.numel() for p in model.parameters()) / 1e6
        row["pairs"] = model.kv.out_features // (2 * model.config.dim) + len(model.content)
    return row


def summary(parts: list[dict]) -> dict[str, dict[str, tuple[float, float]]]:
    """Means and standard errors over the seeds. parts: for each seed, row -> metric -> value."""
    def both(x):
        return float(np.mean(x)), float(np.std(x, ddof=1) / len(x) ** 0.5)
    return {row: {metric: both([part[row][metric] for part in parts]) for metric in metrics}
            for row, metrics in parts[0].items()}


def show(name: str, table: dict[str, dict[str, tuple[float, float]]], size: Size) -> None:
    """Print a table: mean ± standard error over the seeds."""
    columns = list(dict.fromkeys(metric for row in table.values() for metric in row))
    print(f"\n{name}: {TABLES[name][0]}\n{len(SEEDS)} seeds, {size.steps} steps of "
          f"{size.batch}, width {size.width}, {size.drawn} pictures per row and seed"
          + "; quick: only large differences mean anything" * (size == QUICK))
    print(f"{'':<20}" + "".join(f"{column:>18}" for column in columns))
    for row, metrics in table.items():
        cells = (f"{metrics[c][0]:.3f} ± {metrics[c][1]:.3f}" if c in metrics else "-"
                 for c in columns)
        print(f"{row:<20}" + "".join(f"{cell:>18}" for cell in cells))


def entries(name: str, table: dict, command: str) -> dict[str, dict]:
    """A table as entries of results.json: claims.TABLE.ROW.METRIC, and the same with .error."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    machine = f"{os.cpu_count()} cores, " + ", ".join({*re.findall(r"model name\s*: (.*)", cpu)})
    return {".".join(re.sub(r"\W+", "_", part) for part in ("claims", name, row, metric)) + end:
            {"value": round(value, 6), "command": command, "machine": machine}
            for row, metrics in table.items() for metric, both in metrics.items()
            for end, value in zip(("", ".error"), both)}


def put(path: Path, content: dict) -> None:
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def begin(out: Path, size: Size) -> dict:
    """The finished parts in `out`; UserError if `out` belongs to something else."""
    state = {"size": asdict(size), "parts": {}, "seconds": {}}
    try:
        out.with_suffix(".models").mkdir(parents=True, exist_ok=True)
        found = json.loads(out.read_text()) if out.exists() else state
        if found.keys() != state.keys() or found["size"] != state["size"]:
            raise ValueError("it holds something else")
        return found
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"--out {out}: can't continue from it ({error}); use another") from None


def work(out: Path, names: list[str], size: Size, write: str = "") -> None:
    """Compute and print tables; save each seed's part in `out`. `write`: the command to record."""
    state, found = begin(out, size), {}
    bench, parts = Bench(size, out.with_suffix(".models")), state["parts"]
    wanted = [(name, seed) for seed in SEEDS for name in names]
    for name, seed in (bar := tqdm(wanted, "claims", unit="part")):
        bar.set_postfix_str(f"{name}, seed {seed}")
        if (key := f"{name} {seed}") not in parts:
            begun = time.perf_counter()
            parts[key] = {row: measure(bench, seed, *of) for row, of in TABLES[name][1].items()}
            state["seconds"][key] = round(time.perf_counter() - begun, 1)
            put(out, state)
    for name in names:
        table = summary([parts[f"{name} {seed}"] for seed in SEEDS])
        show(name, table, size)
        found |= entries(name, table, write)
    print(f"\n{sum(state['seconds'].values()) / 60:.1f} minutes of work, all saved in {out}")
    if write:
        put(RESULTS, json.loads(RESULTS.read_text()) | found)
        print(f"{len(found)} numbers written to {RESULTS}")


def main() -> int:
    parser = Parser("python -m tutorial.claims", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller models, fewer steps and "
                        "pictures: minutes, and only large differences show")
    parser.add_argument("--only", choices=TABLES, help="one table")
    parser.add_argument("--out", type=Path, help="file for finished parts; trained models go next "
                        "to it (default: runs/claims.json, or claims-quick.json)")
    parser.add_argument("--write", action="store_true", help="write to tutorial/results.json")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    out = options.out or Path("runs") / f"claims{'-quick' * options.quick}.json"
    names = [options.only] if options.only else list(TABLES)
    command = " ".join([parser.prog, *sys.argv[1:]]) * options.write
    return exit_code(parser.prog, lambda: work(out, names, size, command))


if __name__ == "__main__":
    sys.exit(main())
