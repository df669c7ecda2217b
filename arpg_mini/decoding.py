"""From noise to ids: orders, step sizes, guidance, sampling, and the parallel decoder.

The one idea: each step encodes the tokens of the step before, appends their keys and values to the
cache, and asks for all of its targets at once (paper §3.2, figure 4). `decode_sequential` is the
same function written to be seen right: no cache, one query at a time, everything recomputed from
the ids, the attention pattern an explicit mask. Tests hold the two together.

Noise belongs to a sample and a position, never to a step: a sample's seed gives its order and one
uniform number per raster position, and its token there is the inverse CDF at that number. So an
image is a function of (weights, class, seed, settings) and of nothing else.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .attention import Cache
from .control import hints
from .model import ARPG

SCHEDULES = ("arccos", "cosine", "constant")
GUIDANCE_SCHEDULES = ("linear", "constant")
WITHIN_STEP = ("block", "causal")
POSITIONS = ("extrapolate", "interpolate", "ntk")
MOST_GUIDANCE = 1e4                          # beyond it float32 logits would overflow
ORDER, NOISE, WINDOW = 1, 2, 3              # purposes of a sample's random streams


def step_sizes(n: int, steps: int, schedule: str = "arccos") -> list[int]:
    """How many of n tokens each of `steps` steps decodes: at least one each, n in all.

    "arccos" (the paper's) and "cosine" start small and end large, when most is known;
    "constant" gives equal steps. ValueError if steps is not in 1..n.
    """
    if not 1 <= steps <= n:
        raise ValueError(f"steps {steps}: with {n} tokens to decode it must be 1 to {n}")
    sizes, done = [], 0
    for s in range(1, steps + 1):
        if schedule == "constant":
            left = n - n * s // steps
        else:
            ratio = {"arccos": math.acos(s / steps) / (math.pi / 2),
                     "cosine": math.cos(math.pi / 2 * s / steps)}[schedule]
            left = max(1, min(n - done - 1, int(n * ratio)))
        sizes.append(n - done - left if s < steps else n - done)
        done += sizes[-1]
    return sizes


def random_orders(seeds: Sequence[int], n: int) -> Tensor:
    """(B, n) int64: for each seed its permutation of raster positions 0..n-1."""
    return torch.from_numpy(
        np.stack([np.random.default_rng([ORDER, s]).permutation(n) for s in seeds]))


def named_order(name: str, grid: tuple[int, int]) -> Tensor:
    """(N,) int64: "raster" row by row, "column" column by column, "spiral" from the edge inwards,
    "outward" by distance from the centre, "checkerboard" every second position first."""
    height, width = grid
    row, column = np.divmod(np.arange(height * width), width)
    ring = np.minimum.reduce([row, column, height - 1 - row, width - 1 - column])
    y, x = row - (height - 1) / 2, column - (width - 1) / 2
    # Within a ring, clockwise from its top left corner: along the top, down, back, up.
    top, right, bottom = row == ring, column == width - 1 - ring, row == height - 1 - ring
    side = np.select([top, right, bottom], [0, 1, 2], 3)
    along = np.select([top, right, bottom], [column, row, -column], -row)
    keys = {"raster": [row], "column": [column], "spiral": [ring, side, along],
            "outward": [y * y + x * x, np.arctan2(y, x)],
            "checkerboard": [(row + column) % 2]}[name]
    return torch.from_numpy(np.lexsort(keys[::-1]))


def position_noise(seeds: Sequence[int], n: int) -> Tensor:
    """(B, n) float64 in [0, 1): for each seed one uniform number per raster position."""
    return torch.from_numpy(np.stack([np.random.default_rng([NOISE, s]).random(n) for s in seeds]))


def guide(logits: Tensor, guidance: float, schedule: str, share_done: float) -> Tensor:
    """Classifier-free guidance: conditional half c and unconditional half u -> u + (c - u)·s.

    logits: (2B, M, V), conditional rows first -> (B, M, V), in at least float32. "linear"
    raises s from 1 to `guidance` with `share_done`, the share decoded when this step is over.
    """
    c, u = logits.to(torch.promote_types(logits.dtype, torch.float32)).chunk(2)
    s = guidance if schedule == "constant" else 1 + (guidance - 1) * share_done
    return (u + (c - u) * s).to(logits.dtype)


def filter_logits(logits: Tensor, temperature: float = 1.0, top_k: int = 0,
                  top_p: float = 1.0) -> Tensor:
    """(..., V) logits divided by the temperature, with all but the likely ids at -inf.

    top_k keeps the k largest (and their equals; 0 keeps all). top_p keeps, from the likeliest down,
    until their total reaches p, the id that crosses it included. Temperature 0 keeps the largest.
    """
    if temperature == 0:
        top_k, temperature = 1, 1.0
    logits = logits if temperature == 1 else logits / temperature
    if 0 < top_k < logits.shape[-1]:
        smallest_kept = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    if top_p < 1:
        ranked, ids = logits.sort(dim=-1, descending=True)
        probabilities = ranked.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities                   # total of the likelier
        cut = torch.zeros_like(before, dtype=torch.bool).scatter(-1, ids, before >= top_p)
        logits = logits.masked_fill(cut, -torch.inf)
    return logits


def inverse_cdf(logits: Tensor, noise: Tensor, at_once: int = 32) -> Tensor:
    """Ids distributed as softmax(logits), from uniform numbers.

    logits: (..., V), -inf for impossible. noise: (...) in [0, 1). Returns the (...) ids i with
    P(id < i) <= noise < P(id <= i), `at_once` at a time. In float32 a sum of V = 16384 would drift.
    """
    drawn = []
    for rows, u in zip(logits.reshape(-1, logits.shape[-1]).split(at_once),
                       noise.reshape(-1, 1).split(at_once)):
        cdf = rows.double().softmax(-1).cumsum_(-1)                         # (rows, V)
        total = cdf[:, -1:]                                 # which rounding must not reach
        at = torch.minimum(u.to(total) * total, total.nextafter(torch.zeros_like(total)))
        drawn.append(torch.searchsorted(cdf, at, right=True))
    return torch.cat(drawn).view(noise.shape)


@dataclass(frozen=True)
class Settings:
    """How to decode: the keyword arguments of `decode`. ValueError names what can't be."""

    steps: int | Sequence[int] = 64  # T, 1 to the number of unknown positions; or the sizes, T ints
    schedule: str = "arccos"         # or "cosine", "constant": see `step_sizes`
    guidance: float = 4.0            # see `guide`; 1 costs no second half of the batch
    guidance_schedule: str = "linear"  # or "constant"
    temperature: float = 1.0         # these three: see `filter_logits`
    top_k: int = 0
    top_p: float = 1.0
    orders: Tensor | None = None     # (N,) or (B, N) permutations in place of the seeds' own
    known: Tensor | None = None      # (N,) or (B, N) raster ids that stand fixed, -1 where unknown
    grid: tuple[int, int] | None = None  # (h, w) if not the trained one
    within_step: str = "block"       # tokens of one step, when encoded, see each other; or "causal"
    positions: str = "extrapolate"   # on another grid: see `attention.rotary_table`
    control: Tensor | None = None    # (1 or B, 1, height, width) condition maps: see `control.py`
    against: Tensor | None = None    # (B,) classes that guidance leads away from, in place of none

    def __post_init__(self):
        for name, allowed in (("schedule", SCHEDULES), ("guidance_schedule", GUIDANCE_SCHEDULES),
                              ("within_step", WITHIN_STEP), ("positions", POSITIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r}: must be one of "
                                 f"{', '.join(allowed)}")
        if not abs(self.guidance) <= MOST_GUIDANCE:
            raise ValueError(f"guidance {self.guidance}: must be a number of at most "
                             f"{MOST_GUIDANCE:g}")
        if self.temperature != 0 and not 1e-4 <= self.temperature < math.inf:
            raise ValueError(f"temperature {self.temperature}: must be 0, or 0.0001 or more")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k}: must be 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p}: must be above 0 and at most 1 (all)")


class Plan(NamedTuple):
    """What a decode will do, all known before it starts."""

    ids: Tensor         # (B, N) known ids, -1 elsewhere
    labels: Tensor      # (B,), or (2B,) with the unconditional half behind
    known: Tensor       # (known,) raster positions, ascending
    orders: Tensor      # (B, unknown) raster positions in the order they are decoded
    noise: Tensor       # (B, N) uniform numbers by raster position
    sizes: list[int]    # unknown positions per step
    table: Tensor       # (N + 1, K/2) rotary table of the grid
    hints: Tensor | None  # (B, N, D) what the control says of each position

    def hints_of(self, targets: Tensor, rows: int) -> Tensor | None:
        """(B, M) positions -> their hints (rows, M, D), for both halves if there are two."""
        if self.hints is None:
            return None
        picked = self.hints.gather(1, targets[..., None].expand(-1, -1, self.hints.shape[2]))
        return picked.repeat(rows // len(targets), 1, 1)                    # (rows, M, D)


def make_plan(model: ARPG, labels, seeds: Sequence[int], settings: Settings) -> Plan:
    """Check the arguments of a decode and lay out all it will do."""
    device = model.embedding.weight.device
    grid = tuple(settings.grid or model.config.grid)
    labels = torch.as_tensor(labels, device=device)
    n, batch = grid[0] * grid[1], len(labels)
    against = (torch.full_like(labels, model.null_label) if settings.against is None
               else torch.as_tensor(settings.against, device=device))
    if not len(seeds) == len(against) == batch:
        raise ValueError(f"{len(seeds)} seeds and {len(against)} classes to lead away from for "
                         f"{batch} labels: one a sample")
    if any(((x < 0) | (x > model.null_label)).any() for x in (labels, against)):
        raise ValueError(f"labels {labels.tolist()}: must be 0 to {model.null_label}")
    orders = (random_orders(seeds, n) if settings.orders is None
              else torch.as_tensor(settings.orders).cpu().long())
    orders = orders.expand(batch, n)
    if not torch.equal(orders.sort(-1).values, torch.arange(n).expand(batch, n)):
        raise ValueError(f"orders: each must be a permutation of 0..{n - 1}")
    known = torch.full((n,), -1) if settings.known is None else torch.as_tensor(settings.known)
    ids = known.cpu().long().expand(batch, n).clone()
    is_known = ids[0] >= 0
    if not torch.equal(ids >= 0, is_known.expand(batch, n)):
        raise ValueError("known: the same positions must be known (not -1) in the whole batch")
    if ids.max() >= model.config.vocab_size:
        raise ValueError(f"known: id {ids.max()} is not below the vocabulary size "
                         f"{model.config.vocab_size}")
    orders = orders[~is_known[orders]].view(batch, -1)                      # (B, unknown)
    unknown, sizes = orders.shape[1], settings.steps
    if isinstance(sizes, int):
        sizes = step_sizes(unknown, sizes, settings.schedule) if unknown else []
    if min(sizes, default=1) < 1 or sum(sizes) != unknown:
        raise ValueError(f"steps {list(sizes)}: sizes must be 1 or more and sum to the {unknown} "
                         "unknown positions")
    if settings.guidance != 1:
        labels = torch.cat([labels, against])
    return Plan(ids.to(device), labels, is_known.nonzero()[:, 0].to(device), orders.to(device),
                position_noise(seeds, n).to(device), sizes, model.rotary(grid, settings.positions),
                hints(model, settings.control, batch, grid))


def sample(logits: Tensor, noise: Tensor, share_done: float, settings: Settings) -> Tensor:
    """(B or 2B, M, V) logits of a step's targets and their (B, M) noise -> (B, M) ids."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if len(logits) != len(noise):
        logits = guide(logits, settings.guidance, settings.guidance_schedule, share_done)
    return inverse_cdf(
        filter_logits(logits, settings.temperature, settings.top_k, settings.top_p), noise)


@torch.no_grad()
def decode_steps(model: ARPG, labels, seeds: Sequence[int], **settings) -> Iterator[Tensor]:
    """The streaming form of `decode`: yields the (B, N) raster ids so far after every step, -1 for
    what is not decoded yet. The tensor is the decoder's own: clone it to keep it."""
    how = Settings(**settings)
    plan = make_plan(model, labels, seeds, how)
    yield from (model.run_steps or run_steps)(model, plan, how)


@torch.no_grad()
def run_steps(model: ARPG, plan: Plan, how: Settings) -> Iterator[Tensor]:
    """The steps of a plan. Shapes and settings alone say what the device is to do, and nothing
    waits for what it did: so they can be recorded (see `replay.py`)."""
    rows, (batch, n) = len(plan.labels), plan.ids.shape
    repeat = rows // batch                                  # 2 with guidance: the same tokens twice
    weight = model.embedding.weight
    # A slot for the class and every token but the last step's, which nobody asks about any more.
    slots = 1 + len(plan.known) + sum(plan.sizes[:-1])
    cache = Cache(model.config.content_layers + 1, rows, model.config.heads, slots,
                  model.config.head_dim, device=weight.device, dtype=weight.dtype)

    def read(positions: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the tokens that stand at (B, s) positions, as one step's."""
        ids = plan.ids.gather(1, positions).repeat(repeat, 1)               # (rows, s)
        s, past, mask = positions.shape[1], cache.length, None
        if how.within_step == "causal" and s > 1:
            mask = torch.ones(s, past + s, dtype=torch.bool, device=ids.device).tril(past)
        return model.read(ids, plan.table[positions].repeat(repeat, 1, 1), mask=mask, cache=cache)

    class_slot = torch.full((rows, 1), n, device=weight.device)
    keys, values = model.read(model.class_ids(plan.labels), plan.table[class_slot], cache=cache)
    if len(plan.known):
        keys, values = read(plan.known.expand(batch, -1))
    done, targets = 0, None
    for size in plan.sizes:
        if done:
            keys, values = read(targets)                    # the step before's
        targets = plan.orders[:, done:done + size]                          # (B, M)
        done += size
        hidden = model.ask(plan.table[targets].repeat(repeat, 1, 1), keys, values,
                           hints=plan.hints_of(targets, rows))              # (rows, M, D)
        share_done = done / plan.orders.shape[1]
        if repeat == 2:                     # the head is linear: guided before it, it costs half
            hidden = guide(hidden, how.guidance, how.guidance_schedule, share_done)
        logits = model.head(hidden).contiguous()                            # (B, M, V)
        drawn = sample(logits, plan.noise.gather(1, targets), share_done, how)  # (B, M)
        plan.ids.scatter_(1, targets, drawn)
        yield plan.ids
    if not plan.sizes:
        yield plan.ids
    cache.release()


def decode(model: ARPG, labels, seeds: Sequence[int], **settings) -> Tensor:
    """Draw images' ids, many positions a step, with a cache (paper §3.2).

    labels: (B,) classes, or `model.null_label` for none. seeds: B ints; a sample's seed fixes its
    order and its noise. settings: the fields of `Settings`.
    Returns (B, N) raster ids. ValueError names an argument that can't be.
    """
    *_, ids = decode_steps(model, labels, seeds, **settings)
    return ids


@torch.no_grad()
def decode_sequential(model: ARPG, labels, seeds: Sequence[int], **settings) -> Tensor:
    """What `decode` computes, by its definition: one sample and one query at a time, for each of
    which the whole content sequence is encoded anew under a mask of which slot sees which."""
    how = Settings(**settings)
    plan = make_plan(model, labels, seeds, how)
    batch, n = plan.ids.shape
    for b in range(batch):
        # Slots of the content sequence: where each stands, and the step that wrote it.
        places, wrote = [n] + plan.known.tolist(), [0] + [1] * len(plan.known)
        unknown, done = plan.orders[b].tolist(), 0
        for step, size in enumerate(plan.sizes, start=2):
            targets = unknown[done:done + size]
            done += size
            slot, group = torch.arange(len(wrote)), torch.tensor(wrote)
            mask = slot[:, None] >= slot                                    # (S, S) row sees column
            if how.within_step == "block":
                mask = group[:, None] >= group
            drawn = [draw_one(model, plan, how, b, places, mask, target, done)
                     for target in targets]
            plan.ids[b, targets] = plan.ids.new_tensor(drawn)
            places += targets
            wrote += [step] * size
    return plan.ids


def draw_one(model: ARPG, plan: Plan, how: Settings, b: int, places: list[int], mask: Tensor,
             target: int, done: int) -> int:
    """One token of sample b at raster position `target`, from the slots at `places`."""
    slots = torch.tensor([places], device=plan.ids.device)                  # (1, S)
    where = torch.tensor([[target]], device=plan.ids.device)                # (1, 1)
    logits = []
    for label in plan.labels[b::len(plan.ids)]:                             # class, then none
        ids = torch.cat([model.class_ids(label[None]), plan.ids[b, slots[:, 1:]]], dim=1)
        keys, values = model.read(ids, plan.table[slots], mask=mask.to(slots.device))
        hints = None if plan.hints is None else plan.hints[b:b + 1, target:target + 1]
        hidden = model.ask(plan.table[where], keys, values, hints=hints)    # (1, 1, D)
        logits.append(model.head(hidden))                                   # (1, 1, V)
    noise = plan.noise[b, target].view(1, 1)
    return sample(torch.cat(logits), noise, done / plan.orders.shape[1], how).item()
