"""The Hypothesis strategies of the properties: grids, orders, groupings into steps, whole decodes.

`for_all(case=decodes())` reads "for all decodes". Every strategy shrinks towards the case that is
easiest to follow by hand (two tokens, one layer, one head, one sample, raster order). A failing
property therefore ends with the smallest decode that breaks it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from unittest.mock import patch

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from arpg_mini import ARPG, decoding
from arpg_mini.config import GUIDANCE_SCHEDULES, WITHIN_STEP
from tests.helpers import tiny_model

V, C = 7, 3                                  # numbers of ids and classes; label C: no class


def for_all(examples: int = 100, **quantities):
    """∀: a Hypothesis test over `quantities`. It keeps its parts as attributes, for the mutants.

    The profile scales `examples`: five times as many with `--hypothesis-profile thorough`.
    """
    def decorate(claim: Callable) -> Callable:
        many = max(1, examples * settings.default.max_examples // 100)
        phases = Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink
        test = settings(max_examples=many, deadline=None, phases=phases)(given(**quantities)(claim))
        test.claim, test.quantities, test.examples = claim, quantities, examples
        return test
    return decorate


# Lists, smallest first: all members are equally likely, while integers would mostly be small.
# Grids: 1×n, n×1, prime numbers of tokens, more rows than columns, more columns than rows.
grids = st.sampled_from([(1, 2), (2, 1), (1, 3), (2, 2), (1, 5), (2, 3), (3, 2), (1, 7), (7, 1),
                         (3, 3), (2, 5), (5, 2), (3, 4), (4, 3), (1, 13), (3, 5)])
layers = st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3]))   # content, query
heads = st.sampled_from([1, 2, 3])
head_widths = st.sampled_from([4, 8, 12])                    # K: two, four or six rotated pairs
seeds = st.integers(0, 2**32)
labels = st.integers(0, C)                                   # C: no class


def permutations(n: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Orders: order[t] is the raster position that is decoded t-th."""
    return st.permutations(range(n)).map(tuple)


def compositions(n: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Groupings of n positions into 1 to n steps; each step has one position or more.

    Between two neighbours there is a cut or no cut: 2^(n-1) groupings, the bits of a number.
    """
    def sizes(cuts: int) -> tuple[int, ...]:
        ends = [i + 1 for i in range(n) if cuts >> i & 1 or i == n - 1]
        return tuple(b - a for a, b in zip([0] + ends, ends))
    return st.integers(0, max(0, 2**(n - 1) - 1)).map(sizes) if n else st.just(())


def partial_images(n: int) -> st.SearchStrategy[tuple[int, ...]]:
    """The known ids of an image, -1 where unknown. Nothing, some ids or everything is known."""
    def ids(unknowns: int):
        one = st.sampled_from([-1] * unknowns + list(range(V)))
        return st.lists(one, min_size=n, max_size=n).map(tuple)
    nothing, everything, half, less = st.just((-1,) * n), ids(0), ids(V), ids(2 * V)
    return st.sampled_from([nothing] * 4 + [half, less] * 3 + [everything]).flatmap(lambda s: s)


def new_model(grid: tuple[int, int], layers: tuple[int, int], heads: int, head_width: int,
              rope_base: float = 10000.0, **more) -> ARPG:
    """A small float64 model with weights of order one."""
    return tiny_model(**dict(grid=grid, content_layers=layers[0], query_layers=layers[1],
                             heads=heads, dim=heads * head_width, vocab_size=V, num_classes=C,
                             rope_base=rope_base) | more)


model_of = lru_cache(maxsize=200)(new_model)     # shared: do not change the models


@dataclass(frozen=True, repr=False)
class Decode:
    """Everything that a decode depends on. The model's weights follow from its sizes.

    Without `sizes` it is a training example: an order, a class, and no steps.
    """

    grid: tuple[int, int]
    trained: tuple[int, int]                     # the model's own grid
    layers: tuple[int, int]
    heads: int
    head_width: int
    rope_base: float
    labels: tuple[int, ...]
    seeds: tuple[int, ...]
    orders: tuple[tuple[int, ...], ...] | None   # a permutation per sample; None: by the seeds
    sizes: tuple[int, ...] | None                # unknown positions per step
    within_step: str
    guidance: float
    guidance_schedule: str
    known: tuple[int, ...]                       # -1 where unknown, else the id for seed 0

    def __repr__(self) -> str:
        def run(numbers):
            return " ".join(map(str, numbers))
        trained = f" (trained {self.trained[0]}×{self.trained[1]})" * (self.trained != self.grid)
        parts = [f"grid {self.grid[0]}×{self.grid[1]}{trained}",
                 f"{self.layers[0]}+{self.layers[1]} layers, {self.heads}×{self.head_width} wide",
                 f"class {run('none' if y == C else y for y in self.labels)}",
                 f"seed {run(self.seeds)}"]
        if self.orders is not None:
            parts += [f"order {' / '.join(run(order) for order in self.orders)}"]
        if self.sizes is not None:
            parts += [f"steps {'+'.join(map(str, self.sizes)) or 'none'}", self.within_step]
            parts += [f"guidance {self.guidance} {self.guidance_schedule}"] * (self.guidance != 1)
        known = ", ".join(f"{p}: {x}" for p, x in enumerate(self.known) if x >= 0)
        return "; ".join(parts + [f"known {{{known}}}"] * bool(known))

    def _repr_pretty_(self, printer, cycle):     # how Hypothesis prints it
        printer.text(repr(self))

    @property
    def model(self) -> ARPG:
        return model_of(self.trained, self.layers, self.heads, self.head_width, self.rope_base)

    def new_model(self, **more) -> ARPG:
        return new_model(self.trained, self.layers, self.heads, self.head_width, self.rope_base,
                         **more)

    @property
    def known_rows(self) -> Tensor:
        """(B, N): the same positions are known in every sample, with different ids."""
        known, by_sample = torch.tensor(self.known), torch.tensor(self.seeds)[:, None]
        return torch.where(known >= 0, (known + by_sample) % V, -1)

    @property
    def unknown_orders(self) -> Tensor:
        """(B, U): the unknown positions in decoding order."""
        return torch.tensor([[p for p in order if self.known[p] < 0] for order in self.orders])

    @property
    def settings(self) -> dict:
        return dict(steps=list(self.sizes), known=self.known_rows, grid=self.grid,
                    orders=None if self.orders is None else torch.tensor(self.orders),
                    within_step=self.within_step, guidance=self.guidance,
                    guidance_schedule=self.guidance_schedule)

    def with_(self, **changes) -> "Decode":
        return replace(self, **changes)

    def run(self, decoder: Callable, model: ARPG | None = None, draws: Tensor | None = None
            ) -> "Trace":
        return trace(decoder, model or self.model, self.labels, self.seeds, draws, **self.settings)

    def query(self, b: int, t: int) -> str:
        """Describe a query in words: where it is, and what it may read, step by step."""
        order, ends = self.unknown_orders[b].tolist(), list(accumulate(self.sizes))
        step = sum(end <= t for end in ends)
        groups = [["class"], [p for p, x in enumerate(self.known) if x >= 0]]
        groups += [order[start:end] for start, end in zip([0, *ends], ends[:step])]
        may_read = ", then ".join(" ".join(map(str, group)) for group in groups if group)
        return (f"sample {b}, step {step}, query at position {order[t]}, which may read {may_read} "
                f"({self.within_step})")


def a_decode(draw, *, one_a_step: bool = False, nothing_known: bool = False, steps: bool = True,
             own_orders: bool = False, as_trained: bool = False,
             batch: st.SearchStrategy[int] = st.sampled_from([1, 2, 3])) -> Decode:
    grid = draw(grids)
    n, b = grid[0] * grid[1], draw(batch)
    known = (-1,) * n if nothing_known or not steps else draw(partial_images(n))
    unknown = sum(x < 0 for x in known)
    sizes = (1,) * unknown if one_a_step else draw(compositions(unknown)) if steps else None
    other_grid = steps and not as_trained and draw(st.booleans())
    return Decode(
        grid=grid, trained=draw(grids) if other_grid else grid,
        rope_base=draw(st.sampled_from([10000.0, 100.0])), layers=draw(layers),
        heads=draw(heads), head_width=draw(head_widths),
        labels=draw(st.tuples(*[labels] * b)), seeds=draw(st.tuples(*[seeds] * b)),
        orders=None if own_orders else draw(st.tuples(*[permutations(n)] * b)), sizes=sizes,
        within_step=draw(st.sampled_from(WITHIN_STEP)),
        guidance=draw(st.sampled_from([1.0, 2.5, 7.0, 1.0, 0.5, 0.0])),
        guidance_schedule=draw(st.sampled_from(GUIDANCE_SCHEDULES)), known=known)


decodes = st.composite(a_decode)


def lessons(**more) -> st.SearchStrategy[Decode]:
    """Training examples."""
    return decodes(steps=False, **more)


@dataclass
class Trace:
    """What a decode did: the logits and noise of its U unknown positions, in decoding order."""

    ids: Tensor                                  # (B, N)
    logits: Tensor                               # (B, U, 1 or 2 with guidance, V)
    guided: Tensor                               # (B, U, V): the ids were drawn from these
    noise: Tensor                                # (B, U)
    share_done: list[float]                      # as given to each call of `sample`


def trace(decoder: Callable, model: ARPG, labels, seeds, draws: Tensor | None = None,
          **how) -> Trace:
    """Run `decode` or `decode_sequential`, and record what `ask` returns and what `sample` gets.

    `draws` (B, U): ids in decoding order. If given, they replace the ids that `sample` draws.
    """
    answers, logits, guided, noise, shares = [], [], [], [], []
    true_sample, true_ask = decoding.sample, model.ask

    def ask(*where, **how):
        answers.append(true_ask(*where, **how))
        return answers[-1]

    def listen(given_logits, given_noise, share_done, settings):
        b, t = given_noise.shape[0], sum(x.shape[1] for x in noise)
        halves = model.head(torch.cat(answers))
        answers.clear()
        logits.append(halves.detach().unflatten(0, (-1, b)).permute(1, 2, 0, 3))
        if len(given_logits) > b:
            guided.append(decoding.guide(given_logits, settings.guidance,
                                         settings.guidance_schedule, share_done))
        else:
            guided.append(given_logits)
        noise.append(given_noise.clone())
        shares.append(share_done)
        if draws is not None:
            return draws[:, t:t + given_noise.shape[1]]
        return true_sample(given_logits, given_noise, share_done, settings)

    with patch.object(decoding, "sample", listen), patch.object(model, "ask", ask):
        ids = decoder(model, torch.tensor(labels), list(seeds), **how).clone()
    b = len(labels)
    if not logits:                               # everything was known
        return Trace(ids, torch.empty(b, 0, 1, V), torch.empty(b, 0, V), torch.empty(b, 0), shares)
    # `decode_sequential` makes calls of (1, 1, …), sample by sample.
    whole = [torch.cat(x, 1).view(b, -1, *x[0].shape[2:]) for x in (logits, guided, noise)]
    return Trace(ids, *whole, shares)


def short(numbers) -> str:
    """Numbers for a message, to six digits."""
    if isinstance(numbers, torch.Tensor):
        numbers = numbers.tolist()
    return ("[" + ", ".join(map(short, numbers)) + "]" if isinstance(numbers, list)
            else f"{numbers:.6g}")


def chi_squared_p(counts: Tensor, expected: Tensor) -> float:
    """The p-value: how often a correct sampler's counts are as far off. Pools cells that expect
    fewer than 10."""
    rare = expected < 10
    counts, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (counts, expected))
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(freedom, statistic / 2).item()
