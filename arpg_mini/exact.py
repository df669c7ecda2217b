"""Exact decoding: the images of one token a step, in fewer passes.

The one idea: noise belongs to a sample and a position, so the ids of one token a step are a
deterministic function, and a causal model can check many guesses in one pass. A pass encodes the
guessed tokens, asks for all of their positions again, and draws each with its own noise. A draw is
final if everything that its query saw is final. The other draws are the next guesses.

A *rank* is a place in a sample's order: rank r is decoded after r others. The token of rank r is
kept in slot `base` + r of the cache, after the class and the known tokens.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .attention import Cache
from .decoding import make_plan
from .model import ARPG
from .sampling import Settings, guide, sample


class GuessCache(Cache):
    """A cache in which each sample writes slots of its own, over what a wrong guess left there."""

    at: Tensor | None = None    # (rows, s), the slots of the next tokens; None: after the last

    def layer(self, i: int) -> tuple[Tensor, int | Tensor]:
        if self.at is None:
            return super().layer(i)
        return self.pairs[i, :, :, :, :self.length], self.at

    def advance(self, slots: int) -> None:
        if self.at is None:
            super().advance(slots)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows of the batch but these."""
        for pair in self.pairs:
            pair[:, :len(rows)] = pair[:, rows]
        self.pairs = self.pairs[:, :, :len(rows)]


@torch.no_grad()
def exact_steps(model: ARPG, labels, seeds: Sequence[int], window: int = 16,
                **settings) -> Iterator[Tensor]:
    """The streaming form of `decode_exact`: after every pass it yields the (B, N) raster ids that
    are final, -1 elsewhere. Later passes write to the same tensor, so clone it to keep it."""
    if not isinstance(window, int) or window < 1:
        raise ValueError(f"window {window}: must be a whole number, 1 or more")
    for name in ("steps", "schedule", "within_step"):
        if name in settings:
            raise ValueError(f"{name}: exact decoding draws one token a step")
    how = Settings(steps=None, **settings)
    plan = make_plan(model, labels, seeds, how)
    ids, base, (batch, unknown) = plan.ids, 1 + len(plan.known), plan.orders.shape
    if not unknown:
        yield ids
        return
    repeat = len(plan.labels) // batch                      # 2 with guidance: the same tokens twice
    weight = model.embedding.weight
    cache = GuessCache(model.config.content_layers + 1, len(plan.labels), model.config.heads,
                       base + unknown - 1, model.config.head_dim, device=weight.device,
                       dtype=weight.dtype)
    whole = cache.pairs.zero_()             # a slot's value counts even if nobody attends to it

    def both(x: Tensor) -> Tensor:
        """(b, …) for the samples -> (rows, …) for the class and what guidance leads away from."""
        return x.repeat(repeat, *[1] * (x.ndim - 1))

    def first(slots: Tensor, total: int) -> Tensor:
        """(b, m) numbers of slots -> (rows, 1, m, total): each sees so many, from the first on."""
        return both(torch.arange(total, device=ids.device) < slots[:, None, :, None])

    class_slot = torch.full_like(plan.labels[:, None], ids.shape[1])
    keys, values = model.read(model.class_ids(plan.labels), plan.table[class_slot], cache=cache)
    if len(plan.known):                                     # together, as those of one step
        where = plan.known.expand(len(plan.labels), -1)
        keys, values = model.read(both(ids[:, plan.known]), plan.table[where], cache=cache)
    rank = torch.arange(unknown, device=ids.device)
    rows = torch.arange(batch, device=ids.device)           # the samples that are not finished
    done = torch.zeros_like(rows)                           # (b,) their final ranks
    drawn = torch.full_like(plan.orders, -1)                # (b, unknown) newest draws; -1: none
    while len(rows):
        filled = (drawn >= 0).sum(1).clamp(max=unknown - 1)  # the last rank is never encoded
        if done[0]:                         # the newest final token, and the guesses after it
            many = int((filled - done).max()) + 1
            at = (done[:, None] - 1 + rank[:many]).minimum(filled[:, None] - 1)     # (b, s)
            cache.at, cache.length = both(base + at), base + int(filled.max())
            keys, values = model.read(
                both(drawn.gather(1, at)), both(plan.table[plan.orders.gather(1, at)]),
                mask=first(base + at + 1, cache.length), cache=cache)
        many = min(window, unknown - int(done.min()))
        at = (done[:, None] + rank[:many]).clamp(max=unknown - 1)                   # (b, M)
        targets = plan.orders.gather(1, at)
        # A rank without a guess before it sees all that there is: its draw is a first guess.
        sees = first(base + at.minimum(filled[:, None]), keys.shape[2])
        hidden = model.ask(both(plan.table[targets]), keys, values, mask=sees,
                           hints=plan.hints_of(targets, len(rows) * repeat))        # (rows, M, D)
        if repeat == 2:
            share_done = (at + 1).to(torch.promote_types(hidden.dtype, torch.float32)) / unknown
            hidden = guide(hidden, how.guidance, how.guidance_schedule, share_done[..., None])
        logits = model.head(hidden).contiguous()                                    # (b, M, V)
        new = sample(logits, plan.noise.gather(1, targets), 1.0, how)               # (b, M)
        right = (drawn.gather(1, at) == new)[:, :-1].long().cumprod(1).sum(1)
        done = (done + 1 + right).clamp(max=unknown)
        drawn.scatter_(1, at, new)
        final = drawn.masked_fill(rank >= done[:, None], -1)
        ids[rows] = ids[rows].scatter(1, plan.orders, final)
        yield ids
        going = (done < unknown).nonzero()[:, 0]
        if len(going) < len(rows):          # finished samples leave the batch
            cache.keep(torch.cat([going + half * len(rows) for half in range(repeat)]))
            rows, done, drawn = rows[going], done[going], drawn[going]
            plan = plan._replace(orders=plan.orders[going], noise=plan.noise[going],
                                 hints=None if plan.hints is None else plan.hints[going])
    cache.pairs = whole
    cache.release()


def decode_exact(model: ARPG, labels, seeds: Sequence[int], window: int = 16,
                 **settings) -> tuple[Tensor, Tensor]:
    """Draw the ids that `decode` draws with one token a step, in fewer passes.

    window: how many ranks a pass asks for, from the first that is not final. labels, seeds,
    settings: those of `decode`, but for `steps`, `schedule` and `within_step`. Known tokens see
    each other, as with `within_step="block"`.
    Returns (B, N) raster ids, and (B,) the passes that each sample took: 1 to the number of unknown
    positions, because each pass makes at least one token final. ValueError names a wrong argument.
    """
    known, passes = settings.get("known"), torch.zeros(len(labels), dtype=torch.long)
    before = torch.as_tensor(-1 if known is None else known).ge(0).sum(-1).cpu()
    for ids in exact_steps(model, labels, seeds, window, **settings):
        now = (ids >= 0).sum(1).cpu()
        passes, before = passes + (now > before), now
    return ids, passes
