"""Grades chapter 4: python -m pytest tutorial/exercises/test_ch04.py [-k EXERCISE]"""

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from arpg_mini import ARPG, ModelConfig
from tutorial.exercises.grading import attempt, expect, fail, judge

CHAPTER = "ch04_training"


def why(got, mistakes: dict, otherwise: str) -> str:
    """What a wrong value usually means: the first of the mistakes that gives exactly this value."""
    for sentence, value in mistakes.items():
        if (isinstance(got, torch.Tensor) and got.shape == value.shape
                and torch.allclose(got.detach().double(), value.double(), 1e-6, 1e-6)):
            return sentence
    return otherwise


# training_batch

TOKENS = torch.tensor([[5, 3, 8, 1, 9, 2], [7, 0, 4, 6, 2, 5], [1, 6, 0, 9, 3, 8]])
LABELS, DROP = torch.tensor([2, 1, 0]), torch.tensor([False, True, False])
ORDERS = torch.tensor([[3, 0, 5, 1, 2, 4], [1, 4, 2, 0, 5, 3], [5, 2, 4, 1, 0, 3]])
BATCH_CALL = (f"training_batch(tokens={TOKENS.tolist()}, labels={LABELS.tolist()}, "
              f"orders={ORDERS.tolist()}, drop={DROP.tolist()}, vocab_size=10, num_classes=3)")


def parts(answers) -> list:
    arguments = [x.clone() for x in (TOKENS, LABELS, ORDERS, DROP)]
    got = attempt(BATCH_CALL, lambda: answers("training_batch")(*arguments, 10, 3))
    if not isinstance(got, tuple) or len(got) != 4:
        fail(BATCH_CALL, got, "a tuple of four tensors",
             "return all four as a tuple, in the order of the task: return a, b, c, d")
    for name, now, was in zip(("tokens", "labels", "orders", "drop"), arguments,
                              (TOKENS, LABELS, ORDERS, DROP)):
        expect(f"{name} after {BATCH_CALL}", now, was, "the function changed the caller's tensors")
    return list(got)


def permuted(orders: torch.Tensor) -> torch.Tensor:
    return TOKENS.gather(1, orders)


def test_training_batch__targets(answers):
    _, _, targets, places = parts(answers)
    expect(f"targets of {BATCH_CALL}", targets, permuted(ORDERS), why(targets, {
        "the targets are in raster order: query t asks for tokens[orders[t]]": TOKENS,
        "one order serves the whole batch: each sample has its own": TOKENS[:, ORDERS[0]],
        "the permutation was inverted: argsort(orders) or scatter instead of gather":
            permuted(ORDERS.argsort(1)),
        "the wrong side is shifted: shift the content by one slot, and not the targets":
            permuted(ORDERS.roll(-1, 1)),
    }, "targets[b, t] is tokens[b, orders[b, t]], for all N queries"))
    expect(f"target_places of {BATCH_CALL}", places, ORDERS, why(places, {
        "queries are in raster order: query t asks about orders[t]": torch.arange(6).expand(3, 6),
        "one order serves the whole batch: each sample has its own": ORDERS[:1].expand(3, 6),
        "the permutation was inverted": ORDERS.argsort(1),
    }, "query t asks about position orders[:, t]"))


def test_training_batch__content(answers):
    ids, places, _, _ = parts(answers)
    call = f"content_ids of {BATCH_CALL}"
    kept, dropped = 10 + 1 + LABELS, torch.where(DROP, 14, 11 + LABELS)
    targets = permuted(ORDERS)

    def slots(classes, tokens=targets[:, :-1]):
        return torch.cat([classes[:, None], tokens], dim=1)
    expect(call, ids, slots(dropped), why(ids, {
        "the content is not shifted: slot t holds the token that query t must predict":
            slots(dropped, targets[:, 1:]),
        "the class slot is missing: the content is the class, then N - 1 tokens": targets,
        "the class slot is missing: the content is the class, then N - 1 tokens (too short)":
            targets[:, :-1],
        "the last token is in the content too: it has N slots with the class":
            slots(dropped, targets),
        "the content is in raster order: slot t must hold tokens[orders[t - 1]]":
            slots(dropped, TOKENS[:, :-1]),
        "drop was ignored": slots(kept),
        "one sample's drop was applied to the whole batch: use torch.where for each sample":
            slots(torch.full((3,), 14)),
        "drop is inverted: True drops the class": slots(torch.where(DROP, 11 + LABELS, 14)),
        "the class number was used as a row: class y is row V + 1 + y":
            slots(dropped - 11),
        "row V belongs to [MASK]: class y is row V + 1 + y": slots(dropped - 1),
        "[MASK] is not \"no class\": no class is row V + 1 + C":
            slots(torch.where(DROP, 10, 11 + LABELS)),
        "row V + C belongs to the last class: no class is row V + 1 + C":
            slots(torch.where(DROP, 13, 11 + LABELS)),
    }, "the row of the class, then tokens[b, orders[b, 0]] to tokens[b, orders[b, N - 2]]"))
    right = torch.cat([torch.full((3, 1), 6), ORDERS[:, :-1]], dim=1)
    expect(f"content_places of {BATCH_CALL}", places, right, why(places, {
        "places and ids disagree: slot t holds the token of position orders[t - 1], so that is "
        "its place": ORDERS,
        "the class slot has no position: its place is N, not 0":
            torch.cat([torch.zeros(3, 1, dtype=torch.long), ORDERS[:, :-1]], dim=1),
        "the places are slot numbers: a token keeps its raster position":
            torch.cat([torch.full((3, 1), 6), torch.arange(5).expand(3, 5)], dim=1),
    }, "N for the class slot, then orders[:, 0] to orders[:, N - 2]"))


# chunked_loss

class Largest(TorchDispatchMode):
    """Records the largest number of rows, of V numbers each, that any operation returned."""

    def __init__(self, v: int):
        super().__init__()
        self.v, self.rows = v, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and self.v in tensor.shape:
                self.rows = max(self.rows, tensor.numel() // self.v)
        return out


def loss_case(seed: int, rows: int):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(23, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(17, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(17, (23,), generator=generator)
    call = f"chunked_loss(hidden (23, 3), weight (17, 3), targets (23,), rows={rows})"
    return hidden, weight, targets, call


def test_chunked_loss__value(answers):
    for seed, rows in ((4, 5), (5, 23), (6, 22), (7, 1), (8, 100), (9, 9)):
        hidden, weight, targets, call = loss_case(seed, rows)
        got = attempt(call, lambda: answers("chunked_loss")(hidden, weight, targets, rows))
        if isinstance(got, float):
            fail(call, got, "a tensor of shape ()",
                 "the graph was cut: .item() or float() makes a number that has no gradient")
        if isinstance(got, torch.Tensor) and got.dtype == torch.float32:
            fail(f"{call}.dtype", got.dtype, hidden.dtype,
                 "the sum starts in float32: start with 0 or hidden.new_zeros(())")
        with torch.no_grad():
            losses = F.cross_entropy(hidden @ weight.T, targets, reduction="none")   # (R,)
        chunks, full = losses.split(rows), max(1, len(losses) // rows) * rows
        expect(call, got, losses.mean(), why(got, {
            "the chunks have different sizes: the mean of their means gives the rows of the last "
            "chunk more weight": torch.stack([c.mean() for c in chunks]).mean(),
            "the means of the chunks were added up: the mean is a sum over all rows, divided once":
                torch.stack([c.mean() for c in chunks]).sum(),
            "this is the sum: divide by the number of rows": losses.sum(),
            "the sum was divided by the number of chunks, not by the number of rows":
                losses.sum() / len(chunks),
            "the last chunk, which is smaller, was dropped": losses[:full].mean(),
            "the last chunk was dropped, but its rows were counted":
                losses[:full].sum() / len(losses),
        }, "the sum of all rows' losses, divided by the number of rows"), 1e-9)


def test_chunked_loss__gradient(answers):
    hidden, weight, targets, call = loss_case(11, 4)
    got = attempt(call, lambda: answers("chunked_loss")(hidden, weight, targets, 4))
    if not getattr(got, "requires_grad", False):
        fail(f"{call}.requires_grad", False, True,
             "the graph was cut: .item(), .detach(), torch.tensor(…) or no_grad in the loop")
    expected = torch.autograd.grad(F.cross_entropy(hidden @ weight.T, targets), (hidden, weight))
    for name, grad, right in zip(("hidden", "weight"),
                                 torch.autograd.grad(got, (hidden, weight)), expected):
        expect(f"gradient of {call} for {name}", grad, right,
               "the graph does not connect some chunk to the loss", 1e-9)


def test_chunked_loss__rows(answers):
    for rows in (4, 7):
        hidden, weight, targets, call = loss_case(13, rows)
        with Largest(17) as largest, torch.no_grad():
            attempt(call, lambda: answers("chunked_loss")(hidden, weight, targets, rows))
        # weight.T has V columns too, of 3 numbers each: fewer than `rows` rows.
        if largest.rows > rows:
            fail(f"rows of logits at once in {call}", largest.rows, f"at most {rows}",
                 "all logits were computed before they were split, or another tensor is as large, "
                 "like one-hot targets: split hidden, and multiply each chunk"
                 if largest.rows >= 23 else
                 "a chunk is too large: .split(rows) makes chunks of that many rows, .chunk(rows) "
                 "makes that many chunks; and (rows, V, D) has D times too many numbers")


# check_no_peeking

class Toy:
    """One content layer and two query layers, with soft attention. Its masks can be replaced.

    A token's place is a vector added to the token. Masks are (row, column): 1 where the row sees
    the column.
    """

    def __init__(self):
        generator = torch.Generator().manual_seed(21)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)
        self.ids, self.places, self.head = normal(7 + 1 + 3, 8), normal(7, 8), normal(8, 7)
        self.mix = [normal(8, 8) / 2 for _ in range(3)]

    def attend(self, queries, slots, mask, layer):
        scores = queries @ self.mix[layer] @ slots.transpose(1, 2)                # (B, N, N)
        return scores.masked_fill(mask == 0, -torch.inf).softmax(-1) @ slots

    def __call__(self, tokens, labels, orders, content_sees=None, query_sees=None, late_sees=None,
                 content=None):
        """content: (B, N - 1) ids after the class slot, if not the tokens in their order."""
        causal = torch.ones(6, 6).tril()
        content = tokens.gather(1, orders)[:, :-1] if content is None else content
        ids = torch.cat([8 + labels[:, None], content], dim=1)                    # (B, N)
        places = torch.cat([torch.full_like(orders[:, :1], 6), orders[:, :-1]], dim=1)
        slots = self.ids[ids] + self.places[places]                               # (B, N, 8)
        slots = slots + self.attend(slots, slots, causal if content_sees is None else content_sees,
                                    0)
        x = self.places[orders]                                                   # (B, N, 8)
        x = x + self.attend(x, slots, causal if query_sees is None else query_sees, 1)
        x = x + self.attend(x, slots, causal if late_sees is None else late_sees, 2)
        return x @ self.head


toy = Toy()
ALL, BEYOND = torch.ones(6, 6), torch.ones(6, 6).tril(1)


def raster(tokens, labels, orders):
    return toy(tokens, labels, orders, content=tokens[:, :-1])


def unshifted(tokens, labels, orders):
    return toy(tokens, labels, orders, content=tokens.gather(1, orders)[:, 1:])


def under_some_orders(tokens, labels, orders):
    peeking = toy(tokens, labels, orders, query_sees=ALL)
    return torch.where((orders[:, 0] == 3)[:, None, None], peeking,
                       toy(tokens, labels, orders))


def at_the_last_query(tokens, labels, orders):
    logits = toy(tokens, labels, orders).clone()
    logits[:, -1] += toy.ids[tokens.gather(1, orders)[:, -1], :7]
    return logits


def a_little(tokens, labels, orders):
    targets = tokens.gather(1, orders)
    return toy(tokens, labels, orders) + 1e-6 * F.one_hot(targets, 7)


def at_the_token_after(tokens, labels, orders):
    logits = toy(tokens, labels, orders).clone()
    logits[:, :-1] += toy.ids[tokens.gather(1, orders)[:, 1:], :7]
    return logits


def at_one_id(tokens, labels, orders):
    targets = tokens.gather(1, orders)
    return toy(tokens, labels, orders) + (targets == 4)[..., None]


BROKEN = [
    ("lets query t see slots 0 to t + 1 (mask off by one)",
     lambda *batch: toy(*batch, query_sees=BEYOND, late_sees=BEYOND)),
    ("encodes content without a causal mask", lambda *batch: toy(*batch, content_sees=ALL)),
    ("puts the token that query t predicts into slot t (content not shifted)", unshifted),
    ("fills the slots in raster order", raster),
    ("peeks in its last query layer only", lambda *batch: toy(*batch, late_sees=BEYOND)),
    ("peeks only when order[0] is 3", under_some_orders),
    ("shows only the last query its target", at_the_last_query),
    ("shows query t the token after its target", at_the_token_after),
    ("peeks by 1e-6", a_little),
    ("peeks only where the target's id is 4", at_one_id),
]


def real():
    """The package's own model, with weights so large that all tokens it sees matter."""
    torch.manual_seed(22)
    model = ARPG(ModelConfig(dim=8, content_layers=2, query_layers=2, heads=2, vocab_size=7,
                             num_classes=3, grid=(2, 3), ffn_hidden=12, dropout=0.0)).double()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5)
    return model.eval()


def forgetful(tokens, labels, orders):
    """Sees only the class and the position it asks about."""
    return toy(torch.zeros_like(tokens), labels, orders)


def test_check_no_peeking__right(answers):
    """Three right models: the package's, one that ignores its content tokens, and the toy."""
    model = real()
    for right in (lambda *batch: model(*batch), forgetful, toy):
        judge("check_no_peeking", answers("check_no_peeking"), right, [])


def test_check_no_peeking__broken(answers):
    judge("check_no_peeking", answers("check_no_peeking"), toy, BROKEN)


# average_step

def test_average_step(answers):
    for decay, step in ((0.99, 0), (0.99, 8), (0.9, 400), (0.75, 14)):
        generator = torch.Generator().manual_seed(31 + step)
        average = [torch.randn(shape, generator=generator, dtype=torch.float64)
                   for shape in ((3, 2), (5,))]
        weights = [torch.randn(a.shape, generator=generator, dtype=torch.float64,
                               requires_grad=True) for a in average]
        before, kept = [a.clone() for a in average], [w.detach().clone() for w in weights]
        call = f"average_step(average, weights, decay={decay}, step={step})"
        attempt(call, lambda: answers("average_step")(list(average), weights, decay, step))
        warm = (1 + step) / (10 + step)
        d = min(decay, warm)
        for i, (a, b, w) in enumerate(zip(average, before, kept)):
            expect(f"weights[{i}] after {call}", weights[i].detach(), w,
                   "the model's weights were changed: change only the average")
            expect(f"average[{i}] after {call}", a, d * b + (1 - d) * w, why(a, {
                "the average did not change: `a = …` only gives a name to a new tensor, and "
                "`average[i] = …` only puts a new tensor into the list; write into the old tensor "
                "(a.mul_, a.lerp_, a.copy_)": b,
                "the roles are swapped: d is the share of the old average":
                    (1 - d) * b + d * w,
                "the average starts with the final decay: d = min(decay, …) is 0.1 at first":
                    decay * b + (1 - decay) * w,
                "d keeps growing towards 1: it may not exceed decay":
                    warm * b + (1 - warm) * w,
                f"the weights replaced the average: it keeps the share d = {d:.3g}": w,
            }, "d * average + (1 - d) * weights, d = min(decay, (1 + step) / (10 + step))"), 1e-9)
            if not weights[i].requires_grad:
                fail(f"weights[{i}].requires_grad after {call}", False, True,
                     "gradients of the model's weights were turned off: use torch.no_grad()")
            if a.requires_grad:
                fail(f"average[{i}].requires_grad after {call}", True, False,
                     "the average became part of the graph, and every old graph stays in memory: "
                     "update it under torch.no_grad()")
