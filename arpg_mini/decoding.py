"""The parallel decoder: many positions a step, with a cache.

The one idea: each step encodes the tokens of the previous step, appends their keys and values to
the cache, and asks for all of its targets at once (paper §3.2, figure 4). `decode_sequential`
computes the same by the definition: no cache, one query at a time, everything recomputed from the
ids under an explicit attention mask. Tests hold the two together.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .attention import Cache
from .control import hints
from .model import ARPG
from .orders import orders_by_name, step_sizes
from .sampling import Settings, guide, position_noise, sample


class Plan(NamedTuple):
    """Everything that a decode will do. All of it is known before the decode starts."""

    ids: Tensor         # (B, N) known ids, else -1; the decode fills it
    labels: Tensor      # (B,), or (2B,): then what guidance leads away from
    known: Tensor       # (known,) raster positions, ascending
    orders: Tensor      # (B, unknown) raster positions in the order they are decoded
    noise: Tensor       # (B, N) uniform numbers by raster position
    sizes: list[int]    # unknown positions per step
    table: Tensor       # (N + 1, K/2) rotary table of the grid
    hints: Tensor | None  # (B, N, D) the control's vector for each position

    def hints_of(self, targets: Tensor, rows: int) -> Tensor | None:
        """(B, M) positions -> their hints (rows, M, D), for both halves with guidance."""
        if self.hints is None:
            return None
        picked = self.hints.gather(1, targets[..., None].expand(-1, -1, self.hints.shape[2]))
        return picked.repeat(rows // len(targets), 1, 1)                    # (rows, M, D)


def make_plan(model: ARPG, labels, seeds: Sequence[int], settings: Settings) -> Plan:
    """Check the arguments of a decode and plan all its steps."""
    device = model.embedding.weight.device
    grid = tuple(settings.grid or model.config.grid)
    labels = torch.as_tensor(labels, device=device)
    n, batch = grid[0] * grid[1], len(labels)
    against = (torch.full_like(labels, model.null_label) if settings.against is None
               else torch.as_tensor(settings.against, device=device))
    if not len(seeds) == len(against) == batch:
        raise ValueError(f"{len(seeds)} seeds and {len(against)} classes to lead away from for "
                         f"{batch} labels: there must be one per sample")
    if any(((x < 0) | (x > model.null_label)).any() for x in (labels, against)):
        raise ValueError(f"labels {labels.tolist()}, against {against.tolist()}: must be 0 to "
                         f"{model.null_label}")
    known = torch.full((n,), -1) if settings.known is None else torch.as_tensor(settings.known)
    ids = known.cpu().long().expand(batch, n).clone()
    is_known = ids[0] >= 0
    if not torch.equal(ids >= 0, is_known.expand(batch, n)):
        raise ValueError("known: the same positions must be known (not -1) in the whole batch")
    if ids.max() >= model.config.vocab_size:
        raise ValueError(f"known: id {ids.max()} is not below the vocabulary size "
                         f"{model.config.vocab_size}")
    unknown = n - int(is_known.sum())
    sizes = unknown if settings.steps is None else settings.steps
    if isinstance(sizes, int):
        sizes = step_sizes(unknown, sizes, settings.schedule) if unknown else []
    if min(sizes, default=1) < 1 or sum(sizes) != unknown:
        raise ValueError(f"steps {list(sizes)}: sizes must be 1 or more and sum to the {unknown} "
                         "unknown positions")
    orders = "random" if settings.orders is None else settings.orders
    if isinstance(orders, str):
        orders = orders_by_name(orders, seeds, grid, sizes, is_known)
    orders = torch.as_tensor(orders).cpu().long().expand(batch, n)
    if not torch.equal(orders.sort(-1).values, torch.arange(n).expand(batch, n)):
        raise ValueError(f"orders: each must be a permutation of 0..{n - 1}")
    orders = orders[~is_known[orders]].view(batch, unknown)
    if settings.guidance != 1:
        labels = torch.cat([labels, against])
    return Plan(ids.to(device), labels, is_known.nonzero()[:, 0].to(device), orders.to(device),
                position_noise(seeds, n).to(device), sizes, model.rotary(grid, settings.positions),
                hints(model, settings.control, batch, grid))


@torch.no_grad()
def decode_steps(model: ARPG, labels, seeds: Sequence[int], **settings) -> Iterator[Tensor]:
    """The streaming form of `decode`: after every step it yields the (B, N) raster ids so far, -1
    where nothing is decoded yet. Later steps write to the same tensor, so clone it to keep it."""
    how = Settings(**settings)
    plan = make_plan(model, labels, seeds, how)
    yield from (model.run_steps or run_steps)(model, plan, how)


@torch.no_grad()
def run_steps(model: ARPG, plan: Plan, how: Settings) -> Iterator[Tensor]:
    """Run the steps of a plan. What the device does depends only on shapes and settings, and the
    CPU never waits for a result. So the steps can be recorded (see `run/replay.py`)."""
    rows, (batch, n) = len(plan.labels), plan.ids.shape
    repeat = rows // batch                                  # 2 with guidance: the same tokens twice
    weight = model.embedding.weight
    # A slot for the class and for every token but the last step's: nothing is predicted after it.
    slots = 1 + len(plan.known) + sum(plan.sizes[:-1])
    cache = Cache(model.config.content_layers + 1, rows, model.config.heads, slots,
                  model.config.head_dim, device=weight.device, dtype=weight.dtype)

    def rotary(positions: Tensor) -> Tensor:
        return plan.table[positions].repeat(repeat, 1, 1)                   # (rows, s, K/2)

    def read(positions: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the tokens at (B, s) positions as those of one step."""
        ids = plan.ids.gather(1, positions).repeat(repeat, 1)               # (rows, s)
        s, past, mask = positions.shape[1], cache.length, None
        if how.within_step == "causal" and s > 1:
            mask = torch.ones(s, past + s, dtype=torch.bool, device=ids.device).tril(past)
        return model.read(ids, where, mask=mask, cache=cache)

    class_slot = torch.full((rows, 1), n, device=weight.device)
    keys, values = model.read(model.class_ids(plan.labels), plan.table[class_slot], cache=cache)
    if len(plan.known):
        known = plan.known.expand(batch, -1)
        keys, values = read(known, rotary(known))
    done, targets, where = 0, None, None
    for size in plan.sizes:
        if done:
            keys, values = read(targets, where)             # the previous step's
        targets = plan.orders[:, done:done + size]                          # (B, M)
        done, where = done + size, rotary(targets)
        hidden = model.ask(where, keys, values,
                           hints=plan.hints_of(targets, rows))              # (rows, M, D)
        share_done = done / plan.orders.shape[1]
        if repeat == 2:                     # the head is linear: guiding before it halves its cost
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

    labels: (B,) classes, or `model.null_label` for no class. seeds: B ints; a sample's seed fixes
    its order and its noise. settings: the fields of `Settings`.
    Returns (B, N) raster ids. ValueError names an argument that is wrong.
    """
    *_, ids = decode_steps(model, labels, seeds, **settings)
    return ids


@torch.no_grad()
def decode_sequential(model: ARPG, labels, seeds: Sequence[int], **settings) -> Tensor:
    """What `decode` computes, by the definition: one sample and one query at a time. For each query
    the whole content sequence is encoded again, under a mask that says which slot sees which."""
    how = Settings(**settings)
    plan = make_plan(model, labels, seeds, how)
    batch, n = plan.ids.shape
    for b in range(batch):
        # Slots of the content sequence: the position of each, and the step that wrote it.
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
    for label in plan.labels[b::len(plan.ids)]:                             # class, then against
        ids = torch.cat([model.class_ids(label[None]), plan.ids[b, slots[:, 1:]]], dim=1)
        keys, values = model.read(ids, plan.table[slots], mask=mask.to(slots.device))
        hints = None if plan.hints is None else plan.hints[b:b + 1, target:target + 1]
        hidden = model.ask(plan.table[where], keys, values, hints=hints)    # (1, 1, D)
        logits.append(model.head(hidden))                                   # (1, 1, V)
    noise = plan.noise[b, target].view(1, 1)
    return sample(torch.cat(logits), noise, done / plan.orders.shape[1], how).item()
