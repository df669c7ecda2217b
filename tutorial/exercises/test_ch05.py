"""Grades chapter 5."""

import math

import torch

from arpg_mini.attention import Cache, rotary_table, rotate
from arpg_mini.decoding import make_plan
from arpg_mini.sampling import Settings, guide, sample
from tutorial.exercises.grading import attempt, expect, fail, judge

CHAPTER = "ch05_parallel"


def arccos_sizes(n: int, steps: int, curve=lambda x: math.acos(x) / (math.pi / 2)) -> list[int]:
    """The curve gives the share of n that is left after each step; sizes are differences."""
    left = [n]
    for s in range(1, steps):
        left.append(max(1, min(left[-1] - 1, int(n * curve(s / steps)))))
    return [a - b for a, b in zip(left, left[1:] + [0])]


def test_step_sizes(answers):
    step_sizes = answers("step_sizes")
    for n, steps in ((16, 4), (36, 5), (256, 64), (100, 13), (36, 36), (41, 40), (7, 1), (1, 1)):
        call = f"step_sizes({n}, {steps})"
        got, right = attempt(call, lambda: step_sizes(n, steps)), arccos_sizes(n, steps)
        cosine = arccos_sizes(n, steps, lambda x: math.cos(math.pi / 2 * x))
        if not (isinstance(got, list) and all(type(x) is int for x in got)):
            fail(call, got, right, "the sizes must be a list of Python ints")
        if len(got) != steps:
            usually = f"there must be one size per step, so {steps} sizes"
        elif got == right[::-1]:
            usually = ("the order is reversed: the first steps must be small, because little is "
                       "known then that could make tokens agree")
        elif got == cosine:
            usually = "this is the cosine schedule; arccos(s / steps) / (π / 2) is another curve"
        elif got == [n - sum(right[:i + 1]) for i in range(steps)] and n > 1:
            usually = "these are the tokens left after each step; the sizes are their differences"
        elif sum(got) != n:
            usually = (f"the sizes sum to {sum(got)}, not {n}: rounding each size by itself loses "
                       "or adds tokens, and raising a size to 1 afterwards does it too; round and "
                       "limit the number left, and let the last step take the rest")
        elif min(got) < 1:
            usually = ("a step has no token: each step must take at least one and leave at least "
                       "one for each later step")
        else:
            usually = ("after step s = 1, 2, … the number of tokens left is n · arccos(s / steps) "
                       "/ (π / 2), rounded down")
        expect(call, got, right, usually)


def test_step_sizes__refuses(answers):
    step_sizes = answers("step_sizes")
    for n, steps in ((5, 6), (5, 0)):
        def refused():
            try:
                return step_sizes(n, steps)
            except ValueError:
                return ValueError
        call = f"step_sizes({n}, {steps})"
        expect(call, attempt(call, refused), ValueError,
               "more steps than tokens, or no steps, are impossible: raise ValueError")


def slow_draw(logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """One distribution at a time, one id at a time."""
    ids = []
    for row, u in zip(logits.double().flatten(0, -2), noise.flatten().tolist()):
        running, drawn = 0.0, None
        for i, p in enumerate(row.softmax(-1).tolist()):
            if p > 0 and (drawn is None or u >= running):
                drawn = i
            running += p
        ids.append(drawn)
    return torch.tensor(ids).view(noise.shape)


def wrong_shape(got, shape) -> str:
    if isinstance(got, torch.Tensor) and got.shape == shape:
        return ""
    return "there must be one id for each number: a tensor with the shape of noise"


def test_draw(answers):
    draw = answers("draw")
    logits = torch.tensor([0.2, 0.0, 0.5, 0.3], dtype=torch.float64).log()
    for u, i in ((0.1, 0), (0.69, 2), (0.71, 3)):
        call = f"draw(log of [0.2, 0, 0.5, 0.3], {u})"
        got = attempt(call, lambda: draw(logits, torch.tensor(u, dtype=torch.float64)))
        expect(call, got, torch.tensor(i), wrong_shape(got, ()) or
               "the id is the first whose running sum of probabilities (softmax) is above the "
               "number: it depends on the number, and on nothing else that is random")
    for seed, shape in ((3, (5,)), (4, (3, 4)), (5, (2, 1, 6))):
        g = torch.Generator().manual_seed(seed)
        rows = 2 * torch.randn(*shape, 7, generator=g, dtype=torch.float64)
        noise = torch.rand(shape, generator=g, dtype=torch.float64)
        call = f"draw(logits of shape {tuple(rows.shape)}, noise of shape {shape})"
        got, right = attempt(call, lambda: draw(rows, noise)), slow_draw(rows, noise)
        most = rows.argmax(-1)
        usually = ("this is the likeliest id, whatever the number: argmax does not sample"
                   if isinstance(got, torch.Tensor) and torch.equal(got, most)
                   else "softmax and cumsum run over the last axis, the vocabulary, and every "
                        "distribution is compared with its own number")
        expect(call, got, right, wrong_shape(got, shape) or usually)


def test_draw__edges(answers):
    draw, inf = answers("draw"), math.inf
    zero = torch.tensor(0.0, dtype=torch.float64)
    top = torch.tensor(1 - 2.0**-53, dtype=torch.float64)
    for row, noise, i in (([-inf, 0.4, 1.1], zero, 1), ([0.0, -inf, 0.0], zero + 0.5, 2),
                          ([-inf, -inf, 0.3, 0.9], zero, 2)):
        row = torch.tensor(row, dtype=torch.float64)
        call = f"draw({row.tolist()}, {noise.item()})"
        got = attempt(call, lambda: draw(row, noise))
        expect(call, got, torch.tensor(i), wrong_shape(got, ()) or
               "an id of probability zero was drawn, or an id on the wrong side of a boundary: the "
               "id is the first whose running sum is above the number, not equal to it "
               "(right=True in searchsorted)")
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        row = torch.cat([torch.randn(3001, generator=g), torch.tensor([-inf, -inf])])
        call = f"draw(3001 float32 logits and two -inf, {top.item()})"
        expect(call, attempt(call, lambda: draw(row, top)), torch.tensor(3000),
               "rounding ends the running sum a little below 1 (in float32, a lot): a number above "
               "the end must draw the last id whose probability is not zero")
    # Numbers just below and just above every boundary except the last.
    ends = torch.arange(1, 3000, dtype=torch.float64) / 3000
    noise = torch.cat([ends - 1e-10, ends + 1e-10])
    right = torch.cat([torch.arange(2999), torch.arange(1, 3000)])
    call = "draw(3000 equal float32 logits for each of 5998 numbers, 1e-10 from the boundaries)"
    got = attempt(call, lambda: draw(torch.zeros(3000).expand(len(noise), -1), noise))
    expect(call, got, right, wrong_shape(got, noise.shape) or
           f"{(got != right).sum()} of the ids are wrong: float32 moves the boundaries by about "
           "1e-8; softmax and sums must be in float64", tolerance=0)


def attention_case(seed: int, batch: int, heads: int, width: int, length: int, s: int, slots: int):
    """Memory with `length` filled slots, garbage after them; q, k, v and rotary of a step."""
    g = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)
    pair = random(2, batch, heads, slots, width)
    pair[:, :, :, length:] *= 30
    places = torch.stack([torch.randperm(12, generator=g)[:s] for _ in range(batch)])
    rotary = rotary_table((3, 4), width, 20.0)[places]                      # (B, s, K/2)
    return pair, random(3, batch, s, heads, width), rotary


def recomputed(pair, length, q, k, v, rotary, within_step):
    """By loops over rows, heads and slots: the right contents of the memory, and the result."""
    pair, out = pair.clone(), torch.empty_like(q)
    q, k = rotate(q, rotary), rotate(k, rotary)
    batch, s, heads, width = q.shape
    for b in range(batch):
        for h in range(heads):
            for i in range(s):
                pair[0, b, h, length + i], pair[1, b, h, length + i] = k[b, i, h], v[b, i, h]
            for i in range(s):
                sees = length + (i + 1 if within_step == "causal" else s)
                scores = pair[0, b, h, :sees] @ q[b, i, h] / math.sqrt(width)
                out[b, i, h] = scores.softmax(-1) @ pair[1, b, h, :sees]
    return pair, out


# within_step, seed, B, H, K, length, s, slots. A step of one token comes last: it explains least.
CASES = [("block", 4, 2, 3, 4, 3, 2, 9), ("block", 5, 3, 2, 8, 0, 4, 7),
         ("causal", 6, 2, 3, 4, 4, 5, 10), ("causal", 7, 4, 1, 12, 2, 3, 11),
         ("causal", 8, 2, 3, 8, 0, 2, 6), ("block", 3, 2, 3, 8, 1, 1, 5)]


def test_cached_attention(answers):
    cached_attention = answers("cached_attention")
    for within, *sizes in CASES:
        pair, (q, k, v), rotary = attention_case(*sizes)
        batch, heads, width, length, s, slots = sizes[1:]
        end, before = length + s, pair.clone()
        right_pair, right = recomputed(pair, length, q, k, v, rotary, within)
        call = (f"cached_attention(pair of {slots} slots, length={length}, q, k, v of shape "
                f"{tuple(q.shape)}, rotary, {within!r})")
        again = before.clone()
        again[:, :, :, end:] += 9.0
        got = attempt(call, lambda: cached_attention(pair, length, q, k, v, rotary, within))
        look_at_memory(call, pair, before, right_pair, length, end, k, rotary)
        if not isinstance(got, torch.Tensor) or got.shape != right.shape:
            fail(call, got, right, "the result has the shape of q: (B, s, H, K)")
        other = cached_attention(again, length, q, k, v, rotary, within)
        if not torch.allclose(got, other):
            fail(f"{call}, twice, with other numbers in slots {end}..{slots - 1}", other, got,
                 "it attends to slots that were never written; slice up to length + s")
        expect(call, got, right, why(got, within, q, rotary, right_pair, length, end))


def look_at_memory(call, pair, before, right, length, end, k, rotary):
    """Check the memory after the call: the filled slots, the new slots, and those after them."""
    def differ(a, b):
        return not torch.allclose(a, b)
    old, new, rest = slice(0, length), slice(length, end), slice(end, None)
    if differ(pair[..., old, :], before[..., old, :]):
        fail(f"{call}; pair[:, :, :, :{length}]", pair[..., old, :], before[..., old, :],
             "filled slots were changed: write new ones from slot `length` on (length counts the "
             "filled slots, so it is the first free one), and rotate nothing again")
    if torch.equal(pair, before):
        fail(f"{call}; pair[:, :, :, {length}:{end}]", pair[..., new, :], right[..., new, :],
             "nothing was written into the memory: assign into a slice of `pair`; torch.cat and "
             "clone make new tensors, and the next step would not find these keys")
    if differ(pair[..., rest, :], before[..., rest, :]):
        fail(f"{call}; pair[:, :, :, {end}:]", pair[..., rest, :], before[..., rest, :],
             "slots after the new ones were written: the s new tokens take s slots from `length`")
    got, wanted = pair[..., new, :], right[..., new, :]
    if not differ(got[0], k.transpose(1, 2)):
        usually = ("the keys are stored unrotated: rotate a key once, by its own place, before you "
                   "write it; later steps do not know that place")
    elif differ(got[:, 1:], wanted[:, 1:]) and not differ(got[:, 0], wanted[:, 0]):
        usually = ("rows of the batch share the keys and values of one row; with guidance the "
                   "second half of the rows has another class, so each row needs its own")
    elif differ(got[1], wanted[1]) and not differ(got[0], wanted[0]):
        usually = "the keys are right, but the values are not: store values unchanged"
    else:
        usually = ("(B, s, H, K) becomes (B, H, s, K) by transpose(1, 2), not by a reshape; "
                   "rotate the keys of each row by the places of that row")
    expect(f"{call}; pair[:, :, :, {length}:{end}]", got, wanted, usually)


def why(got, within, q, rotary, pair, length, end) -> str:
    """What a wrong result usually means if the memory is right."""
    def mixed(mask, turned):
        scores = turned.transpose(1, 2) @ pair[0, :, :, :end].mT / math.sqrt(q.shape[-1])
        x = scores.masked_fill(~mask, -math.inf).softmax(-1) @ pair[1, :, :, :end]
        return x.transpose(1, 2)
    s, turned = q.shape[1], rotate(q, rotary)
    every = torch.ones(s, end, dtype=torch.bool)
    sees = every.tril(length) if within == "causal" else every
    if length and torch.allclose(got, mixed(every.tril(), turned)):
        return ("the causal mask forgets the earlier slots: row i is slot length + i, so use "
                "tril(length); is_causal=True aligns rows and columns at the top left")
    if within == "causal" and torch.allclose(got, mixed(every, turned)):
        return "within_step=\"causal\" is ignored: a new token saw later new tokens"
    if within == "block" and torch.allclose(got, mixed(every.tril(length), turned)):
        return "within_step=\"block\" is ignored: a new token must also see later new tokens"
    if torch.allclose(got, mixed(every, q)) or torch.allclose(got, mixed(every.tril(length), q)):
        return "the queries are not rotated"
    if within == "causal" and any(torch.allclose(got, mixed(every.tril(length + i), turned))
                                  for i in (-1, 1)):
        return ("the causal mask is off by one column: row i is slot length + i and sees all slots "
                "up to itself, so use tril(length)")
    batch, _, heads, width = q.shape
    right = mixed(sees, turned)
    if torch.allclose(got.reshape(batch, heads, s, width).transpose(1, 2), right):
        return "(B, H, s, K) becomes (B, s, H, K) by transpose(1, 2), not by a reshape"
    if torch.allclose(got, mixed(sees, turned * math.sqrt(width))):
        return "the scores are not divided by sqrt(K)"
    if torch.allclose(got[0], right[0]):
        return "only the first row of the batch is right: every row has its own `rotary`"
    old = every.clone()
    old[:, length:] = False
    if length and torch.allclose(got, mixed(old, turned)):
        return "new tokens attend only to the earlier slots: they must see themselves, too"
    return ("scores are q · k / sqrt(K) over all filled slots; cached keys are already rotated and "
            "must not be rotated again")


def decoder(flaw: str):
    """A decoder with one flaw, or none. It repeats the code of `arpg_mini.decoding.run_steps`."""
    @torch.no_grad()
    def decode(model, labels, seeds, **settings):
        how = Settings(**settings)
        plan = make_plan(model, labels, seeds, how)
        rows, (batch, n) = len(plan.labels), plan.ids.shape
        c, table, twice = model.config, plan.table, rows // batch
        cache = Cache(c.content_layers + 1, rows, c.heads, n + 1, c.head_dim,
                      dtype=model.head.weight.dtype)

        def read(positions):
            ids, s = plan.ids.gather(1, positions).repeat(twice, 1), positions.shape[1]
            mask = torch.ones(s, cache.length + s, dtype=torch.bool)
            if how.within_step == "causal" and flaw != "block":
                mask = mask.tril(0 if flaw == "top left" else cache.length)
            return model.read(ids, table[positions].repeat(twice, 1, 1), mask=mask, cache=cache)
        keys, values = model.read(model.class_ids(plan.labels), table[torch.full((rows, 1), n)],
                                  cache=cache)
        if len(plan.known):
            keys, values = read(plan.known.expand(batch, -1))
        done, sizes = 0, [1] * sum(plan.sizes) if flaw == "one" else plan.sizes
        for size in sizes:
            if done:
                keys, values = read(targets)                                # noqa: F821
            targets = plan.orders[:, done:done + size]                      # (B, M)
            done, where, see = done + size, targets, (keys, values)
            if flaw == "first row":
                where = targets[:1].expand(batch, -1)
            if flaw == "short" and size > 1 and keys.shape[2] > 1:
                see = keys[:, :, :-1], values[:, :, :-1]
            if flaw == "halves":
                see = tuple(x[:batch].repeat(twice, 1, 1, 1) for x in see)
            if flaw == "see each other":
                ids, past = torch.full_like(targets, model.mask_id), see
                more = model.read(ids.repeat(twice, 1), table[targets].repeat(twice, 1, 1))
                see = tuple(torch.cat(x, 2) for x in zip(past, more)) if size > 1 else past
            hidden = model.ask(table[where].repeat(twice, 1, 1), *see)
            noise = plan.noise.gather(1, targets)
            if flaw == "noise":
                noise = plan.noise[:, done - size:done]
            drawn = sample(model.head(hidden), noise, done / plan.orders.shape[1], how)
            plan.ids.scatter_(1, targets, drawn)
        return plan.ids
    return decode


BROKEN = {
    "lets the queries of a step see each other": "see each other",
    "draws one token per step, whatever the steps are": "one",
    "ignores the newest slot when it asks for several positions at once": "short",
    "lets a step's tokens see each other although within_step is \"causal\"": "block",
    "takes its noise by rank in the order, not by position": "noise",
    "gives every row of the batch the first row's positions": "first row",
    "lets both guidance halves read the keys of one half": "halves",
}


def test_check_parallel(answers):
    judge("check_parallel", answers("check_parallel"), decoder("none"),
          ((what, decoder(flaw)) for what, flaw in BROKEN.items()))


def slow_accept(guesses: list[int], draws: list[int]) -> int:
    final = 1
    while final < len(draws) and guesses[final - 1] == draws[final - 1]:
        final += 1
    return final


def test_accept(answers):
    accept, cases = answers("accept"), [([[4, 7, 2, 9]], [[4, 7, 5, 9]])]
    g = torch.Generator().manual_seed(6)
    for batch, window in ((1, 5), (4, 6), (3, 1), (6, 2), (5, 9)):
        guesses = torch.randint(3, (batch, window), generator=g)
        wrong = torch.rand(batch, window, generator=g) < 0.25
        draws = torch.where(wrong, (guesses + 1) % 3, guesses)
        guesses[0, window // 2:] = -1                           # a row whose guesses end early
        draws[-1] = guesses[-1]                                 # a row whose guesses are all right
        cases.append((guesses.tolist(), draws.abs().tolist()))
    for guesses, draws in cases:
        call = f"accept({guesses}, {draws})"
        a, b = torch.tensor(guesses), torch.tensor(draws)
        got = attempt(call, lambda: accept(a, b))
        right = torch.tensor([slow_accept(*row) for row in zip(guesses, draws)])
        equal = a == b
        if not (isinstance(got, torch.Tensor) and got.shape == right.shape
                and got.dtype == torch.int64):
            usually = "there must be one count for each sample: an int64 tensor of shape (B,)"
        elif torch.equal(got, equal.sum(1)) or torch.equal(got, 1 + equal[:, :-1].sum(1)):
            usually = ("right guesses after a wrong one count here: their queries saw the wrong "
                       "one, so these draws are not final")
        elif torch.equal(got, equal.long().cumprod(1).sum(1)):
            usually = ("the draw after the last right guess is missing: its query saw only right "
                       "guesses, so it is final whatever its own guess was")
        elif got.max() > a.shape[1]:
            usually = ("more draws are final than were made: no query saw the last guess, so it "
                       "must not count")
        elif torch.equal(got, right.min().expand_as(right)):
            usually = "samples must not wait for each other: each has its own count"
        else:
            usually = ("compare the guess of each rank with the draw of the same rank, and count "
                       "the equal ones before the first that differs, plus one")
        expect(call, got, right, usually)


def guesser(flaw: str):
    """An exact decoder with one flaw, or none. It has no cache: a pass is a training forward."""
    @torch.no_grad()
    def decode_exact(model, labels, seeds, window=16, **settings):
        how = Settings(steps=None, **settings)
        plan = make_plan(model, labels, seeds, how)
        batch, n = plan.orders.shape
        twice, order, rank = len(plan.labels) // batch, plan.orders, torch.arange(n)
        noise = plan.noise if flaw == "noise" else plan.noise.gather(1, order)
        guess, done = torch.zeros_like(order), torch.zeros(batch, 1, dtype=torch.long)
        passes = torch.full((batch,), -1 if flaw == "count" else 0)
        while (done < n).any():
            tokens = torch.zeros_like(order).scatter(1, order, guess).repeat(twice, 1)
            logits = model.eval()(tokens, plan.labels, order.repeat(twice, 1))
            share = (0 * rank + done + 1 if flaw == "share" else rank + 1) / n
            if twice == 2:
                logits = guide(logits, how.guidance, how.guidance_schedule, share[..., None])
            here = noise if flaw != "new noise" else (noise + 0.37 * passes[:, None]) % 1
            drawn = sample(logits, here, 1.0, how)
            asked = (rank >= done) & ((rank < done + window) | (flaw == "window"))
            drawn = torch.where(asked, drawn, guess)
            right = (drawn == guess) & (rank < (n if flaw == "window" else done + window - 1))
            final = right.sum(1) if flaw == "not first" else right.long().cumprod(1).sum(1)
            final = 1 + final[:, None] + (flaw == "one more")
            passes += done[:, 0] < n
            done = done + window if flaw == "unchecked" else final
            if flaw == "fastest":
                done = done.max().expand(batch, 1)
            guess, done = drawn, done.clamp(max=n)
        return torch.zeros_like(order).scatter(1, order, guess), passes
    return decode_exact


GUESSES = {
    "takes every draw of a window for final": "unchecked",
    "takes one draw too many for final": "one more",
    "counts right guesses after a wrong one": "not first",
    "draws new noise in every pass": "new noise",
    "takes its noise by rank in the order, not by position": "noise",
    "guides all ranks of a pass as if they were its first": "share",
    "takes as many draws of every sample for final as of the fastest": "fastest",
    "asks for all ranks whatever the window is": "window",
    "counts its passes from 0": "count",
}


def test_check_exact(answers):
    judge("check_exact", answers("check_exact"), guesser("none"),
          ((what, guesser(flaw)) for what, flaw in GUESSES.items()))
