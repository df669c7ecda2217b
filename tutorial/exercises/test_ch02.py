"""Grades chapter 2: `python -m pytest tutorial/exercises/test_ch02.py [--answers FOLDER]`."""

import math

import torch

from tutorial.exercises.grading import attempt, expect, fail, judge

CHAPTER = "ch02_orders"


def random_joint(sizes: tuple[int, ...], seed: int) -> torch.Tensor:
    noise = torch.randn(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (2 * noise).flatten().softmax(0).view(sizes)


def random_orders(batch: int, n: int, seed: int) -> torch.Tensor:
    """Permutations that are not their own inverse."""
    generator, orders = torch.Generator().manual_seed(seed), []
    while len(orders) < batch:
        order = torch.randperm(n, generator=generator)
        if not torch.equal(order[order], torch.arange(n)):
            orders.append(order)
    return torch.stack(orders)


# log_conditionals, and wrong versions of it for the diagnosis and for the property

def marginal(joint: torch.Tensor, image: torch.Tensor, positions) -> torch.Tensor:
    """The probability of the image's ids at these positions."""
    known = {int(p) for p in positions}
    return joint[tuple(image[i].item() if i in known else slice(None)
                       for i in range(joint.ndim))].sum()


def conditionals(joint, image, targets, given) -> torch.Tensor:
    """ln p(image at targets[t] | image at given[t]) for each t."""
    return torch.stack([(marginal(joint, image, [t, *g]) / marginal(joint, image, g)).log()
                        for t, g in zip(targets, given)])


def right(joint, image, order):
    order = order.tolist()
    return conditionals(joint, image, order, [order[:t] for t in range(len(order))])


def raster_predecessors(joint, image, order):
    order = order.tolist()
    return conditionals(joint, image, order, [list(range(p)) for p in order])


def all_others(joint, image, order):
    order = order.tolist()
    return conditionals(joint, image, order, [[q for q in order if q != p] for p in order])


def target_itself(joint, image, order):
    order = order.tolist()
    return conditionals(joint, image, order, [order[:t + 1] for t in range(len(order))])


def independent(joint, image, order):
    return conditionals(joint, image, order.tolist(), [[]] * len(order))


def not_normalised(joint, image, order):
    order = order.tolist()
    return torch.stack([marginal(joint, image, order[:t + 1]).log() for t in range(len(order))])


def inverse(joint, image, order):
    return right(joint, image, order.argsort())


def backwards(joint, image, order):
    order = order.tolist()
    return conditionals(joint, image, order, [order[t + 1:] for t in range(len(order))])


def always_raster(joint, image, order):
    return right(joint, image, torch.arange(len(order)))


def by_position(joint, image, order):
    return right(joint, image, order)[order.argsort()]


def image_by_time(joint, image, order):
    ids = [image[t] % size for t, size in zip(order.argsort(), joint.shape)]
    return right(joint, torch.stack(ids), order)


def test_log_conditionals(answers):
    function = answers("log_conditionals")
    cases = [(torch.tensor([[0.1, 0.3, 0.2], [0.0, 0.3, 0.1]], dtype=torch.float64), [0, 1], [1, 0],
              "[[0.1, 0.3, 0.2], [0, 0.3, 0.1]]")]
    cases += [(random_joint(sizes, seed), image, order, f"random joint {sizes}")
              for seed, sizes, image, order in (
                  (1, (3, 2, 4), [2, 0, 3], [1, 2, 0]),
                  (2, (2, 4, 3, 2), [1, 2, 0, 1], [2, 0, 3, 1]),
                  (3, (2, 3, 2, 2, 4), [0, 2, 1, 1, 3], [3, 0, 4, 1, 2]))]
    mistakes = {
        "p was not divided by p(known tokens): that is the logarithm of p(all tokens so far)":
            not_normalised,
        "the tokens were treated as independent: there is no condition": independent,
        "each token is conditioned on those before it in raster order, not in `order`":
            raster_predecessors,
        "each token is conditioned on all others, also on later ones": all_others,
        "each token is conditioned on itself": target_itself,
        "`order` was read as its inverse, the time at which each position is generated": inverse,
        "the order was ignored": always_raster,
        "the entries are right, but sorted by raster position; entry t belongs to order[t]":
            by_position,
        "each token is conditioned on later tokens of the order, not on earlier ones": backwards,
        "the order was followed from its end": lambda joint, image, order:
            right(joint, image, order.flip(0)),
        "the id at position order[t] is image[order[t]]; image[t] is the id at position t":
            image_by_time,
        "that is the probability; return its natural logarithm":
            lambda *case: right(*case).exp(),
        "the logarithm has base 2; return the natural logarithm":
            lambda *case: right(*case) / math.log(2),
        "the quotient is upside down: divide p(all up to t) by p(all before t)":
            lambda *case: -right(*case)}
    tried = []
    for joint, image, order, name in cases:
        image, order = torch.tensor(image), torch.tensor(order)
        call = f"log_conditionals({name}, image {image.tolist()}, order {order.tolist()})"
        got = attempt(call, lambda: function(joint.clone(), image.clone(), order.clone()))
        tried.append((call, got, joint, image, order))
    same = [text for text, mistake in mistakes.items()
            if all(isinstance(got, torch.Tensor) and got.shape == case[1].shape
                   and torch.allclose(got.double(), mistake(*case), 1e-5, 1e-5)
                   for _, got, *case in tried)]
    for call, got, *case in tried:
        if isinstance(got, list):
            fail(call, got, right(*case), "return a tensor; torch.stack turns a list into one")
        expect(call, got, right(*case), "; or: ".join(same)
               or "each entry is ln p(all up to t) - ln p(all before t), along the order", 1e-5)
        if got.dtype != case[0].dtype:
            fail(call, got, right(*case), "the result must have the dtype of joint; a tensor made "
                                          "of Python numbers is float32")


# to_raster

def test_to_raster(answers):
    to_raster = answers("to_raster")
    cases = [(torch.tensor([[7, 8, 9]]), torch.tensor([[1, 2, 0]]))]
    for seed, (b, n, *more) in ((4, (2, 5)), (5, (3, 7)), (6, (2, 6, 3)), (7, (4, 3))):
        content = torch.randint(10, 99, (b, n, *more),
                                generator=torch.Generator().manual_seed(seed))
        cases.append((content if seed % 2 else content / 8, random_orders(b, n, seed)))
    for content, orders in cases:
        expected = torch.empty_like(content)
        for b in range(len(orders)):
            for t, position in enumerate(orders[b].tolist()):
                expected[b, position] = content[b, t]
        call = f"to_raster(content {tuple(content.shape)}, orders {orders.tolist()})"
        given = content.clone()
        got = attempt(call, lambda: to_raster(given, orders.clone()))
        usually = "raster[b, orders[b, t]] must be content[b, t], whatever the last axes are"
        if isinstance(got, torch.Tensor) and got.shape == content.shape:
            index = orders.view(*orders.shape, *[1] * (content.ndim - 2)).expand_as(content)
            if torch.equal(got, content.gather(1, index)):
                usually = ("the permutation was applied a second time instead of its inverse: "
                           "that is content[b, orders[b, t]]")
            elif torch.equal(got, expected):
                usually = "the result must have the dtype of content"
            elif torch.equal(got, content[:, orders[0].argsort()]):
                usually = "the first sample's order was used for all samples"
            elif torch.equal(got, content[-1:, orders[-1].argsort()].expand_as(content)):
                usually = "raster[:, orders] writes to all samples; use raster[rows, orders]"
            elif content.ndim > 2 and torch.equal(got[..., 0], expected[..., 0]):
                usually = ("only the first number of each vector was moved: scatter and gather "
                           "move only as many numbers as the index has")
            elif torch.equal(got, content):
                usually = "nothing was moved"
        expect(call, got, expected, usually)
        expect(f"content after {call}", given, content, "content was overwritten; write to a new "
                                                        "tensor")


# inputs_and_targets

def test_inputs_and_targets(answers):
    function = answers("inputs_and_targets")
    cases = [(torch.tensor([[4, 5, 6]]), torch.tensor([90]), torch.tensor([[2, 0, 1]]))]
    for seed, (b, n) in ((8, (2, 5)), (9, (3, 7)), (10, (4, 6))):
        tokens = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(seed + k))
                              [:n] for k in range(b)])
        cases.append((tokens, 90 + 3 * torch.arange(b), random_orders(b, n, seed)))
    for tokens, classes, orders in cases:
        targets = torch.stack([row[order] for row, order in zip(tokens, orders)])
        inputs = torch.stack([torch.tensor([c, *row[:-1]]) for c, row in
                              zip(classes.tolist(), targets.tolist())])
        call = (f"inputs_and_targets({tokens.tolist()}, class_ids {classes.tolist()}, "
                f"orders {orders.tolist()})")
        got = attempt(call, lambda: function(tokens.clone(), classes.clone(), orders.clone()))
        if not (isinstance(got, tuple) and len(got) == 2
                and all(isinstance(x, torch.Tensor) for x in got)):
            fail(call, got, (inputs, targets), "return two tensors, in a tuple")
        back = torch.stack([row[order.argsort()] for row, order in zip(tokens, orders)])
        usually = "targets[b, t] must be tokens[b, orders[b, t]]"
        if torch.equal(got[1], inputs) and torch.equal(got[0], targets):
            usually = "inputs and targets are swapped"
        elif torch.equal(got[1], tokens):
            usually = "the targets were left in raster order"
        elif torch.equal(got[1], back):
            usually = "the inverse of the order was applied"
        elif torch.equal(got[1], tokens[:, orders[0]]):
            usually = "the first sample's order was used for all samples"
        expect(f"the targets of {call}", got[1], targets, usually)
        raster = torch.cat([classes[:, None], tokens[:, :-1]], dim=1)
        raster_moved = torch.stack([row[order] for row, order in zip(raster, orders)])
        rest, column = targets[:, 1:], classes[:, None]
        mistakes = (
            ("there is no shift: input t is target t itself, so the model would copy it", targets),
            ("the shift was made in raster order; along the order, another token comes before",
             raster),
            ("the shift was made in raster order; along the order, another token comes before",
             raster_moved),
            ("the first token of the order was left out instead of the last",
             torch.cat([column, rest], dim=1)),
            ("the shift goes the wrong way: input t is a token that comes after target t",
             torch.cat([rest, column], dim=1)),
            ("the class is last, but it must be read first",
             torch.cat([targets[:, :-1], column], dim=1)),
            ("the last token is at the front, where the class belongs", targets.roll(1, 1)),
            ("the last token is among the inputs, but nothing is predicted after it: use N",
             torch.cat([column, targets], dim=1)))
        said = [text for text, mistake in mistakes if torch.equal(got[0], mistake)]
        expect(f"the inputs of {call}", got[0], inputs, "; or: ".join(said)
               or "the inputs are the class, then the targets without the last")


# check_any_order

def test_check_any_order(answers):
    judge("check_any_order", answers("check_any_order"), right, [
        ("treats the tokens as independent", independent),
        ("conditions each token on itself", target_itself),
        ("conditions on all other tokens", all_others),
        ("does not divide by p(known tokens)", not_normalised),
        ("conditions on earlier tokens in raster order", raster_predecessors),
        ("ignores the order", always_raster),
        ("conditions on later tokens of the order", backwards),
        ("reads the order as its inverse", inverse)])
