"""Graders of chapter 8."""

import math

import numpy as np
import torch

from tutorial.exercises.grading import attempt, expect, fail, judge

CHAPTER = "ch08_scale"


# warmup_cosine

def test_warmup_cosine(answers):
    warmup_cosine = answers("warmup_cosine")
    for steps, warmup, peak, final in [(12, 4, 8.0, 2.0), (37, 5, 3e-4, 1e-5), (20, 1, 0.5, 0.02)]:
        for step in sorted({0, warmup - 1, warmup, warmup + 3, (steps + warmup) // 2, steps - 1}):
            call = f"warmup_cosine({step}, steps={steps}, warmup={warmup}, peak={peak}, " \
                   f"final={final})"
            got = attempt(call, lambda: warmup_cosine(step, steps, warmup, peak, final))
            along = (step - warmup) / (steps - warmup)

            def cosine(x, low):
                return low + (peak - low) * (1 + math.cos(math.pi * x)) / 2

            rising = step < warmup
            right = peak * (step + 1) / warmup if rising else cosine(along, final)
            guesses = [
                (peak * step / warmup if rising else None, "off by one: step 0 would learn "
                 "nothing, and the last step of the warm-up misses the peak; count from 1"),
                (None if rising else cosine(step / steps, final), "the cosine runs from the start "
                 "of training; it starts where the warm-up ends"),
                (None if rising else cosine(along, 0.0), "the cosine ends at 0, not at final"),
                (None if rising else peak + (final - peak) * along, "that is a line, not a cosine"),
                (None if rising else max(final, cosine(along, 0.0)), "the cosine is cut off at "
                 "final; stretch it, so that it reaches final only at the end"),
                (None if rising else cosine(along * (steps - warmup) / (steps - 1 - warmup), final),
                 "the last step, steps - 1, is still above final: divide by steps - warmup"),
                (None if rising else cosine(along + 1 / (steps - warmup), final), "the cosine "
                 "counts from 0: its first step still has the peak"),
                (peak * (step + 1) / warmup if step == warmup else None, "the warm-up is steps 0 "
                 "to warmup - 1; step warmup is the first of the cosine")]
            if not isinstance(got, float) or not math.isclose(got, right, rel_tol=1e-9):
                usually = "peak · (step + 1) / warmup, then half a cosine from peak to final"
                if not isinstance(got, float):
                    usually = f"the result must be a float, not {type(got).__name__}"
                for guess, reason in guesses:
                    if guess is not None and isinstance(got, float) and math.isclose(
                            got, guess, rel_tol=1e-9, abs_tol=1e-12):
                        usually = reason
                        break
                fail(call, got, right, usually)


# training_bytes

def test_training_bytes(answers):
    training_bytes = answers("training_bytes")
    for shapes, processes, shard in [
            ([(2, 3), (5,)], 2, False), ([(2, 3), (5,)], 2, True), ([(7, 4), (3, 2, 5), (6,)], 1,
            False), ([(9, 5), (11,)], 4, False), ([(13, 7), (7,)], 5, True)]:
        call = f"training_bytes({shapes}, processes={processes}, shard={shard})"
        got = attempt(call, lambda: training_bytes(shapes, processes, shard))
        count = sum(int(np.prod(shape)) for shape in shapes)
        held = -(-count // processes) if shard else count
        expected = dict(weights=4 * held, gradients=4 * held, moments=8 * held, average=4 * held)
        share = -(-count // processes)
        usually = "4 bytes for each number, twice that for the moments"
        if not isinstance(got, dict) or got.keys() != expected.keys():
            usually = f"the result must be a dict with the keys {', '.join(expected)}"
        else:
            if got["moments"] == got["weights"] == expected["weights"]:
                usually = "AdamW keeps two moments of every number, not one"
            elif got["weights"] == held:
                usually = "these are counts of numbers, not bytes: a float32 has 4 bytes"
            elif processes > 1 and not shard and got["weights"] == 4 * share:
                usually = ("without sharding every process holds a whole copy: more processes "
                           "share the images, not the weights")
            elif shard and got["weights"] == 4 * held and got["moments"] == 8 * count:
                usually = "sharding also spreads gradients, moments and average, not only weights"
            elif got["weights"] == 4 * sum(sum(shape) for shape in shapes):
                usually = "the count of a tensor is the product of its sizes, not their sum"
            elif shard and got["weights"] == 4 * count:
                usually = "with sharding a process holds its share of the numbers, not all of them"
            elif shard:
                usually = ("a share is rounded up, and only once: add up the counts of all shapes, "
                           "divide, round up, then count bytes")
        expect(call, got, expected, usually)


# rows_of: gradients of a small model, as each process would compute them.

def gradient(weights: torch.Tensor, orders: torch.Tensor) -> torch.Tensor:
    """Gradient of the mean loss over rows; the loss differs much between rows."""
    w = weights.clone().requires_grad_()
    loss = (torch.tanh(orders.double() @ w) - orders[:, 0] / 3).square().mean()
    return torch.autograd.grad(loss, w)[0]


def test_rows_of(answers):
    rows_of = answers("rows_of")
    for seed, step, batch, n, world, micro_batch in [
            (5, 3, 14, 6, 1, 3), (4, 9, 12, 5, 3, 4), (2, 7, 10, 7, 2, 3), (6, 1, 11, 5, 3, 2),
            (3, 8, 13, 6, 4, 5)]:
        where = f"seed={seed}, step={step}, batch={batch}, n={n}, world={world}, " \
                f"micro_batch={micro_batch}"
        orders = torch.from_numpy(
            np.random.default_rng([seed, step]).random((batch, n)).argsort(axis=1))
        ranks = []
        for rank in range(world):
            call = f"rows_of({where}, rank={rank})"
            got = attempt(call, lambda: [
                (piece.long(), float(weight)) for piece, weight in rows_of(
                    seed=seed, step=step, batch=batch, n=n, rank=rank, world=world,
                    micro_batch=micro_batch)])
            if not got or any(p.shape[1:] != (n,) or not len(p) for p, _ in got):
                fail(call, [tuple(p.shape) for p, _ in got], f"pieces (k, {n}) of one row or more",
                     "a piece holds the orders of its rows, one row per image")
            ranks.append(got)
        taken = [torch.cat([piece for piece, _ in got]) for got in ranks]
        call = f"rows_of({where}, rank=0 to {world - 1}): all rows, one rank after the other"
        if not torch.equal(torch.cat(taken), orders):
            counts = [len(t) for t in taken]
            usually = "rank r takes the rows after those of rank r - 1; each row is taken once"
            if world > 1 and counts == [batch] * world:
                usually = "every rank takes the whole batch: all do the same work, and the global "\
                          "batch gets no larger"
            elif world > 1 and all(torch.equal(t, taken[0]) for t in taken):
                usually = "all ranks take the same rows: the first row depends on rank"
            elif sorted(torch.cat(taken).tolist()) == sorted(orders.tolist()):
                usually = ("the rows are right, but their order is not: a rank takes neighbouring "
                           "rows, rank 0 the first ones, and so on")
            elif sum(counts) < batch:
                usually = "no rank takes the last rows: batch / world has a remainder"
            elif sum(counts) == batch:
                usually = ("the orders are not those of one process: draw them for the whole batch "
                           "from [seed, step] only, then take rows")
            fail(call, torch.cat(taken), orders, usually)
        sizes = [len(t) for t in taken]
        if max(sizes) - min(sizes) > 1:
            fail(call, f"{sizes} rows per rank", "counts that differ by one at most", "all ranks "
                 "wait for the rank with the most rows")
        largest = max(len(piece) for got in ranks for piece, _ in got)
        if largest > micro_batch:
            fail(call, f"a piece of {largest} rows", f"at most {micro_batch}", "micro_batch is "
                 "the largest number of rows that fits in memory, not the number of pieces")
        weights = torch.linspace(-0.7, 0.9, n, dtype=torch.float64)
        whole = gradient(weights, orders)

        def together(weigh):
            return sum(weigh(got, piece, weight) * gradient(weights, piece)
                       for got in ranks for piece, weight in got) / world

        got = together(lambda mine, piece, weight: weight)
        if not torch.allclose(got, whole, 1e-9, 1e-12):
            usually = "a row counts weight / rows of its piece / world; this must be 1 / batch"
            for reason, weigh in [
                    ("that is a mean of means: a small piece counts as much as a large one",
                     lambda mine, piece, _: 1 / len(mine)),
                    ("pieces are added up: with weight 1 the gradient grows with their number",
                     lambda mine, piece, _: 1.0),
                    ("gradients are averaged over the ranks, not added up: the result is too small "
                     "by the factor world", lambda mine, piece, _: len(piece) / batch),
                    ("right within a rank, but a rank with fewer rows counts as much as others",
                     lambda mine, piece, _: len(piece) / sum(len(p) for p, _ in mine))]:
                if torch.allclose(got, together(weigh), 1e-9, 1e-12):
                    usually = reason
                    break
            fail(f"the gradient from rows_of({where}) of all ranks", got, whole, usually)


# check_resume

def trainer(flaw: str = ""):
    """Regression with dropout, Adam, a learning rate by step, and a running average."""
    generator = torch.Generator().manual_seed(81)
    inputs, targets = (torch.randn(40, *size, generator=generator) for size in ((6,), ()))

    def train(state, steps):
        if state is None:
            state = {"step": 0, "weights": torch.linspace(-1, 1, 6), "first": torch.zeros(6),
                     "second": torch.zeros(6), "average": torch.linspace(-1, 1, 6)}
        elif flaw == "optimizer":
            state = state | {"first": torch.zeros(6), "second": torch.zeros(6)}
        elif flaw == "average":
            state = state | {"average": state["weights"].clone()}
        elif flaw == "rounded":
            state = state | {"weights": state["weights"].half().float()}
        elif flaw == "counter":
            state = state | {"step": 0}
        if flaw != "shared":
            state = {k: v.clone() if torch.is_tensor(v) else v for k, v in state.items()}
        for step in range(state["step"], state["step"] + steps):
            rng = np.random.default_rng([7, step])
            rows = torch.from_numpy(rng.integers(40, size=8))
            kept = torch.from_numpy(rng.random((8, 6)) > 0.2)
            if flaw == "stream":
                kept = torch.rand(8, 6) > 0.2
            x = inputs[rows] * kept
            slope = x.T @ (x @ state["weights"] - targets[rows]) / 8
            state["first"].mul_(0.9).add_(0.1 * slope)
            state["second"].mul_(0.95).add_(0.05 * slope**2)
            rate = 0.1 * math.cos(step / 12)
            state["weights"].sub_(rate * state["first"] / (state["second"].sqrt() + 1e-4))
            state["average"].lerp_(state["weights"], 0.3)
        if flaw == "swapped" and state["step"]:
            state["weights"] = state["average"].clone()
        state["step"] += steps
        return state
    return train


def test_check_resume(answers):
    judge("check_resume", answers("check_resume"), trainer(), [
        ("loses the optimizer's moments", trainer("optimizer")),
        ("counts its steps from 0 again", trainer("counter")),
        ("draws from the global random stream, not from a stream of the step", trainer("stream")),
        ("starts a new running average", trainer("average")),
        ("saves the weights in half precision", trainer("rounded")),
        ("returns the average as the weights after a resume", trainer("swapped")),
        ("changes the tensors of the state it was given", trainer("shared"))])
