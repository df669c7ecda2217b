"""Grades chapter 1: `python -m pytest tutorial/exercises/test_ch01.py [--answers FOLDER]`."""

import torch
from torch.nn import functional as F

from tutorial.exercises.grading import attempt, expect, fail, judge

CHAPTER = "ch01_ids"


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# nearest_ids

def cosine_ids(features: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Follow the definition, one feature and one row at a time."""
    best = [max(range(len(rows)), key=lambda v: (f @ rows[v] / f.norm() / rows[v].norm()).item())
            for f in features.reshape(-1, features.shape[-1])]
    return torch.tensor(best).view(features.shape[:-1])


def what_went_wrong(got, features: torch.Tensor, rows: torch.Tensor) -> str:
    """Name the mistake that gives this result."""
    unit_rows, unit = F.normalize(rows, dim=-1), F.normalize(features, dim=-1)
    mistakes = {
        "the rows were not normalised before the product, so a row wins because it is long":
            (features @ rows.T).argmax(-1),
        "the rows were not normalised before the distance, so a row wins because it has the right "
        "length": (features[..., None, :] - rows).norm(dim=-1).argmin(-1),
        "only the features were normalised; the rows must be normalised":
            (unit[..., None, :] - rows).norm(dim=-1).argmin(-1),
        "that is the farthest row: the largest cosine is the smallest distance":
            (unit @ unit_rows.T).argmin(-1),
        "the rows were normalised along the wrong axis; each *row* must get length 1":
            (features @ F.normalize(rows, dim=0).T).argmax(-1),
        "the features were normalised along the wrong axis: F.normalize uses axis 1 by "
        "default, and the vectors lie along the last": None if features.ndim < 3 else
            (F.normalize(features, dim=1) @ unit_rows.T).argmax(-1),
    }
    found = [mistake for mistake, result in mistakes.items() if result is not None
             and isinstance(got, torch.Tensor) and torch.equal(got, result)]
    if found:
        return "; or: ".join(found)
    if not isinstance(got, torch.Tensor):
        return "return one tensor of ids; max also returns the values, argmax does not"
    if got.shape != features.shape[:-1]:
        return "the ids must have the features' shape without the last axis"
    return "the id is not the number of the row with the largest cosine"


def test_nearest_ids(answers):
    nearest_ids = answers("nearest_ids")
    rows = torch.tensor([[3., 4.], [0., 0.5], [-5., 0.]])
    features = torch.tensor([[0., 1.], [-0.2, 0.1], [8., 6.], [-1., -2.]])
    call = "nearest_ids([[0, 1], [-0.2, 0.1], [8, 6], [-1, -2]], [[3, 4], [0, 0.5], [-5, 0]])"
    given = features.clone(), rows.clone()
    got = attempt(call, lambda: nearest_ids(*given))
    expect(call, got, torch.tensor([1, 2, 0, 2]), what_went_wrong(got, features, rows))
    for name, after, before in zip(("features", "rows"), given, (features, rows)):
        expect(f"{name} after {call}", after, before,
               f"the {name} were overwritten: `/=` changes the given tensor")


def test_nearest_ids__any_shape(answers):
    nearest_ids = answers("nearest_ids")
    for seed, shape, size in ((1, (2, 3, 5), 7), (2, (4, 6), 11), (3, (3, 2, 5, 4), 9),
                              (4, (5,), 6)):
        features = random(*shape, seed=10 + seed)
        lengths = torch.logspace(-1, 1, size, dtype=torch.float64)[:, None]
        rows = random(size, shape[-1], seed=seed) * lengths
        call = f"nearest_ids(random {shape} features, random {(size, shape[-1])} rows)"
        got = attempt(call, lambda: nearest_ids(features.clone(), rows.clone()))
        expect(call, got, cosine_ids(features, rows), what_went_wrong(got, features, rows))


# straight_through

def test_straight_through(answers):
    function = answers("straight_through")
    for seed, shape in ((5, (3,)), (6, (2, 3, 5)), (7, (4, 7))):
        features, codes, slope = (random(*shape, seed=seed + k).requires_grad_(k < 20)
                                  for k in (0, 10, 20))
        before = features.detach().clone()
        call = f"straight_through(features {shape}, codes {shape})"
        got = attempt(call, lambda: function(features, codes))
        expect(f"features after {call}", features.detach(), before,
               "the features were overwritten; the commitment loss still needs them")
        expect(f"the value of {call}", got, codes.detach(),
               "the wrong tensor was detached: the decoder got the features, not the "
               "codes" if isinstance(got, torch.Tensor) and torch.equal(got, features)
               else "the decoder must get the rounded vectors, the codes")
        nothing = torch.zeros(shape, dtype=torch.float64)
        to_features = to_codes = nothing
        if got.requires_grad:
            (got * slope).sum().backward()
            to_features = nothing if features.grad is None else features.grad
            to_codes = nothing if codes.grad is None else codes.grad
        call = f"the gradient that {call} passes on to"
        both = to_features.any() and to_codes.any()
        if not to_features.any() and not to_codes.any():
            fail(f"{call} features", to_features, slope,
                 "no gradient reaches the features, so the encoder never learns: everything was "
                 "detached, or the remaining gradients cancel")
        if both:
            fail(f"{call} codes", to_codes, nothing,
                 "the gradient goes to both: the difference must be detached as a whole")
        expect(f"{call} features", to_features, slope,
               "the gradient went only to the codes: nothing was detached, or the wrong part was"
               if to_codes.any() else
               "the features must get the gradient unchanged, as if nothing had been rounded")


# usage

def test_usage(answers):
    usage = answers("usage")
    for ids, size, share, perplexity in (
            ([[0, 0], [2, 2]], 4, 0.5, 2.0),
            ([[3, 3, 3], [3, 3, 3]], 5, 0.2, 1.0),
            ([0, 1, 1, 1], 8, 0.25, 4 / 27 ** 0.25),    # exp(¼ ln 4 + ¾ ln 4/3) = 4 / 3^¾
            ([[5, 1, 0], [2, 4, 3]], 6, 1.0, 6.0)):
        tensor, call = torch.tensor(ids), f"usage({ids}, {size})"
        got = attempt(call, lambda: usage(tensor, size))
        if isinstance(got, list):
            fail(call, got, (share, perplexity), "return a tuple: `return share, perplexity`")
        if not (isinstance(got, tuple) and len(got) == 2
                and all(isinstance(x, float) for x in got)):
            counted = isinstance(got, tuple) and got and isinstance(got[0], int)
            fail(call, got, (share, perplexity),
                 "that is a count of rows; the share is the count divided by `size`" if counted
                 else "return two Python floats; .item() turns a tensor into one")
        if not abs(got[0] - share) < 1e-6:
            fail(f"the share in {call}", got[0], share,
                 "the two are swapped: the share comes first" if abs(got[1] - share) < 1e-6
                 else "divide the rows that occur by `size`, the number of rows, not of ids"
                 if abs(got[0] - share * size / tensor.numel()) < 1e-6
                 else "the share is of all `size` rows, also of those above the largest id")
        entropy = torch.tensor(perplexity).log()
        usually = {
            "0·ln 0 counts as 0, but 0 * log(0) is nan; use torch.special.entr": got[1] != got[1],
            "that is the entropy; the perplexity is its exponential":
                abs(got[1] - entropy) < 1e-4,
            "the entropy is in bits, but the exponential has base e: use one base for both":
                abs(got[1] - (entropy / torch.tensor(2.0).log()).exp()) < 1e-4,
            "that counts the rows in use: the perplexity depends on how evenly they are used":
                abs(got[1] - share * size) < 1e-4,
            "the entropy is −Σ p ln p; without the minus it is negative":
                abs(got[1] - 1 / perplexity) < 1e-4,
            "the entropy is a sum over the rows, not a mean":
                abs(got[1] - (entropy / size).exp()) < 1e-4,
        }
        said = [text for text, found in usually.items() if found]
        if not abs(got[1] - perplexity) < 1e-4:
            fail(f"the perplexity in {call}", got[1], perplexity, said[0] if said else
                 "p_v is the share of id v among all ids of the tensor")


# check_round_trip

class Right:
    def __init__(self, rows):
        self.rows = F.normalize(rows, dim=-1)

    def lookup(self, ids):
        return self.rows[ids]

    def nearest(self, features):
        return (features @ self.rows.T).argmax(-1)


class LongRowsWin(Right):
    def __init__(self, rows):
        self.raw, self.rows = rows, F.normalize(rows, dim=-1)

    def nearest(self, features):
        return (features @ self.raw.T).argmax(-1)


class CodesOfAnyLength(Right):
    def __init__(self, rows):
        self.raw, self.rows = rows, F.normalize(rows, dim=-1)

    def lookup(self, ids):
        return self.raw[ids]


class OneSideOnly(Right):
    def __init__(self, rows):
        self.raw, self.rows = rows, F.normalize(rows, dim=-1)

    def nearest(self, features):
        return (features[..., None, :] - self.raw).square().sum(-1).argmin(-1)


class OppositesAreEqual(Right):
    def nearest(self, features):
        return (features @ self.rows.T).abs().argmax(-1)


class LastRowForgotten(Right):
    def nearest(self, features):
        return (features @ self.rows[:max(1, len(self.rows) - 1)].T).argmax(-1)


class Flattened(Right):
    def nearest(self, features):
        return super().nearest(features).flatten()


class FirstRowForever(Right):
    def lookup(self, ids):
        return self.rows[ids - 1]


def test_check_round_trip(answers):
    judge("check_round_trip", answers("check_round_trip"), Right, [
        ("searches among rows that are not normalised", LongRowsWin),
        ("compares unit codes with raw rows by distance", OneSideOnly),
        ("gives codes the length of their rows", CodesOfAnyLength),
        ("counts rows from 1 when it looks them up", FirstRowForever),
        ("never finds the last row", LastRowForgotten),
        ("returns ids in one flat list", Flattened),
        ("confuses a row with its opposite", OppositesAreEqual)])
