"""Grades chapter 6: `python -m pytest tutorial/exercises/test_ch06.py [-k NAME]`."""

import torch

from tutorial.exercises.grading import attempt, expect, fail, judge

CHAPTER = "ch06_steering"


def logits_of(seed: int, *shape: int) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed),
                           dtype=torch.float64)


def test_guide(answers):
    """A constant scale."""
    guide = answers("guide")
    for seed, s in ((3, 2.5), (4, 0.0), (5, 1.0), (6, 7.0)):
        both = logits_of(seed, 4, 3, 5)                         # B = 2, M = 3, V = 5
        c, u = both[:2], both[2:]
        call = f'guide((4, 3, 5) logits, {s}, "constant", [3, 1, 4], 1)'
        got = attempt(call, lambda: guide(both.clone(), s, "constant", [3, 1, 4], 1))
        usually = "the definition is u + (c - u)·s; check s = 0, which is u, and s = 1, which is c"
        for wrong, meaning in (
                (c + (u - c) * s, "the halves are swapped: the first rows have the class"),
                (c + (c - u) * s, "the scale starts from the conditional logits: s = 1 must give "
                 "c, not more than c"),
                (u.softmax(-1) + (c.softmax(-1) - u.softmax(-1)) * s,
                 "the formula was applied to probabilities; apply it to logits"),
                (both[1::2] + (both[::2] - both[1::2]) * s,
                 "rows of c and u were taken alternately: the first B are c, the last B are u"),
                ((u + (c - u) * s).softmax(-1), "return logits, not probabilities")):
            if same(got, wrong) or same_softmax(got, wrong):
                usually = meaning
        expect_logits(call, got, u + (c - u) * s, usually)


def expect_logits(call: str, got, expected: torch.Tensor, usually: str) -> None:
    """Like `expect`, but constants added along the last axis make no difference."""
    if isinstance(got, torch.Tensor) and got.shape == expected.shape and got.is_floating_point():
        if same(got.log_softmax(-1), expected.log_softmax(-1)):
            return
    expect(call, got, expected, usually)


def same(got, expected: torch.Tensor) -> bool:
    return (isinstance(got, torch.Tensor) and got.shape == expected.shape
            and torch.allclose(got.double(), expected, 1e-6, 1e-6))


def same_softmax(got, probabilities: torch.Tensor) -> bool:
    """Are these the logits of those probabilities? Negative probabilities count as zero."""
    if not isinstance(got, torch.Tensor) or got.shape != probabilities.shape:
        return False
    share = probabilities.clamp(min=0)
    return same(got.double().softmax(-1), share / share.sum(-1, keepdim=True))


def test_guide__linear(answers):
    """The scale rises with the share of tokens, not of steps."""
    guide, both, sizes, most = answers("guide"), logits_of(8, 2, 3, 4), [2, 5, 1, 3], 4.0
    c, u = both.chunk(2)
    for step in (1, 2, 0, 3):                   # not 0 first: mistakes look alike there
        call = f'guide((2, 3, 4) logits, {most}, "linear", {sizes}, {step})'
        got = attempt(call, lambda: guide(both.clone(), most, "linear", list(sizes), step))

        def at(share: float) -> torch.Tensor:
            return u + (c - u) * (1 + (most - 1) * share)
        usually = "s = 1 + (guidance - 1) · (tokens decoded when this step ends) / (all tokens)"
        for share, meaning in (
                (min(1, sum(sizes[:step + 2]) / 11), "the scale is that of the next step: it "
                 "reaches `guidance` one step early"),
                (step / 3, "the scale is counted in steps, not in tokens"),
                ((step + 1) / 4, "the scale is counted in steps, not in tokens"),
                (sizes[step] / 11, "only the tokens of this step were counted: those of earlier "
                 "steps are decoded, too"),
                (most / (most - 1) * sum(sizes[:step + 1]) / 11, "1 + guidance · share ends at "
                 "guidance + 1: use 1 + (guidance - 1) · share"),
                (1.0, "the scale is `guidance` at every step, which is the constant schedule"),
                (sum(sizes[:step]) / 11, "this step's own tokens count as decoded; without them "
                 "the last step never reaches `guidance`")):
            if same(got, at(share)):
                usually = meaning
        share = sum(sizes[:step + 1]) / 11
        if same(got, c + (u - c) * (1 + (most - 1) * share)):
            usually = "the halves are swapped: the first rows have the class"
        if same(got, u + (c - u) * most * sum(sizes[:step + 1]) / 11):
            usually = "the scale rises from 0: it must rise from 1, the plain conditional model"
        expect_logits(call, got, at(sum(sizes[:step + 1]) / 11), usually)


def kept_by(ranked: list[int], share: list[float], p: float) -> set[int]:
    """The first ids of the ranking, until their total reaches p."""
    total, kept = 0.0, set()
    for i in ranked:
        if total < p:
            kept.add(i)
        total += share[i]
    return kept


def top_p_mistakes(share: list[float], p: float) -> dict[str, list[set[int]]]:
    """A usual mistake -> the ids that stay with it, for each way to make it."""
    ranked = sorted(range(len(share)), key=lambda i: -share[i])
    right = kept_by(ranked, share, p)
    return {
        "the id that makes the total reach p was cut; it must stay":
            [right - {ranked[len(right) - 1]}, (right - {ranked[len(right) - 1]}) or right],
        "the cut is still in sorted order, not in the order of the ids: scatter it by the indices "
        "of the sort":
            [set(range(len(right))), {i for i in range(len(share)) if ranked[i] < len(right)}],
        "ids were added up from the least likely: sort descending":
            [kept_by(ranked[::-1], share, p)],
    }


def grade_top_p(top_p, cases: list[tuple[torch.Tensor, float]]) -> None:
    """Name a mistake only if it explains which ids stay in every row of every case."""
    rows = []
    for logits, p in cases:
        call = f"top_p({tuple(logits.shape)} logits, {p})"
        got = attempt(call, lambda: top_p(logits.clone(), p))
        if not isinstance(got, torch.Tensor) or got.shape != logits.shape:
            expect(call, got, logits, "the result must have the shape of the logits")
        for row, given in zip(*(x.reshape(-1, x.shape[-1]).double() for x in (got, logits))):
            share = given.softmax(-1).tolist()
            kept = {i for i, x in enumerate(row.tolist()) if x > -torch.inf}
            ranked = sorted(range(len(share)), key=lambda i: -share[i])
            rows.append((f"{call}\n          its row with probabilities "
                         f"{[round(x, 3) for x in share]}", kept, kept_by(ranked, share, p),
                         top_p_mistakes(share, p), row, given))
    usually = "an id stays if the likelier ones together have not reached p"
    for mistake in top_p_mistakes([0.7, 0.3], 0.5):
        if all(kept in mistakes[mistake] for _, kept, _, mistakes, _, _ in rows):
            usually = mistake
    for call, kept, right, _, row, given in rows:
        if kept != right:
            fail(call, f"ids {sorted(kept)} stay", f"ids {sorted(right)} stay", usually)
        for i in right:
            if abs(row[i] - given[i]) > 1e-6:
                fail(call, f"logit {row[i]:.4f} of id {i}", f"logit {given[i]:.4f}",
                     "the ids that stay keep the given logits, not probabilities")


def test_top_p(answers):
    """The example, rows of several shapes, and a p below the likeliest id's own probability."""
    example = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64).log() + 2.0
    grade_top_p(answers("top_p"), [
        (example, 0.75), (example, 0.6), (logits_of(1, 3, 6), 0.8), (logits_of(2, 2, 3, 7), 0.5),
        (torch.tensor([[0.0, 3.0, -1.0], [2.0, -2.0, 4.0]]), 0.1)])


def test_check_guidance(answers):
    """Two right implementations, and broken ones that each violate one of the four things."""
    def right(c, u, s):
        return u + (c - u) * s

    def shifted(c, u, s):                       # also right: a constant makes no difference
        return c.log_softmax(-1) * s + u.log_softmax(-1) * (1 - s) + 2.0

    def one_gains(c, u, s):                     # beyond s = 1 the least favoured id catches up
        guided, (last, first) = u + (c - u) * s, ((c - u).argmin(), (c - u).argmax())
        if s > 1:
            guided[last] = guided[first] - (c[first] - c[last]) + 0.02 * (s - 1)
        return guided

    check = answers("check_guidance")
    broken = [
        ("swaps the halves", lambda c, u, s: c + (u - c) * s),
        ("starts from the conditional logits", lambda c, u, s: c + (c - u) * s),
        ("guides half as much as it should", lambda c, u, s: u + (c - u) * s / 2),
        ("replaces every s below 1 by 1", lambda c, u, s: u + (c - u) * max(s, 1.0)),
        # Right at s = 0 and s = 1, and rising with s: only an added constant shows the mistake.
        ("changes its result when a constant is added to c",
         lambda c, u, s: u + (c - u) * s ** (1 + c.mean().sigmoid())),
        ("changes its result when a constant is added to u",
         lambda c, u, s: u + (c - u) * s ** (1 + u.mean().sigmoid())),
        ("gets weaker beyond s = 1", lambda c, u, s: u + (c - u) * (s if s < 1 else 1 / s)),
        ("moves in the wrong direction between s = 0 and s = 1",
         lambda c, u, s: u + (c - u) * (s if s > 1 else s * (5 * s - 4))),
        ("lets another id gain on the favoured one beyond s = 1", one_gains),
        ("divides its result by s if s is above 1",
         lambda c, u, s: (u + (c - u) * s) / max(s, 1.0)),
    ]
    for good in (right, shifted):
        judge("check_guidance", check, good, broken)


def test_agreement(answers):
    """Joint distributions that are not symmetric, with unequal marginals."""
    call = "agreement(joint), joint[0] = [[0.3, 0.2], [0.1, 0.4]]"
    cases = [(call, torch.tensor([[[0.3, 0.2], [0.1, 0.4]]], dtype=torch.float64))]
    for seed, batch, v in ((1, 3, 4), (2, 4, 3)):
        random = torch.rand(batch, v, v, generator=torch.Generator().manual_seed(seed),
                            dtype=torch.float64) ** 3
        cases.append((f"agreement(({batch}, {v}, {v}) joint)", random / random.sum((1, 2),
                                                                                   keepdim=True)))
    for call, joint in cases:
        got = attempt(call, lambda: answers("agreement")(joint.clone()))
        first, second = joint.sum(2), joint.sum(1)
        usually = "add up P(first is v) · P(second is v) over all ids v"
        if isinstance(got, torch.Tensor) and got.shape != joint.shape[:1]:
            usually = "one number for each of the B data sets: sum over ids, not over the batch"
        for wrong, meaning in (
                (joint.diagonal(dim1=1, dim2=2).sum(1), "that is how often they agree if the "
                 "second is drawn after looking at the first; one step draws both independently"),
                (first.square().sum(1), "both tokens were given the first one's distribution"),
                (second.square().sum(1), "both tokens were given the second one's distribution"),
                (torch.full((len(joint),), 1 / joint.shape[1], dtype=torch.float64),
                 "1/V is right only if each id is as likely as any other")):
            if same(got, wrong):
                usually = meaning
        expect(call, got, (first * second).sum(1), usually)
