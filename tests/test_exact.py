"""Exact decoding draws the ids of one token a step, in fewer passes."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import strategies as st

from arpg_mini import exact
from arpg_mini.attention import Cache
from arpg_mini.decoding import decode, draw_one, make_plan
from arpg_mini.exact import decode_exact, exact_steps
from arpg_mini.sampling import Settings
from tests.helpers import tiny_model
from tests.strategies import V, decodes, for_all

pytestmark = pytest.mark.equivalence

# Sharper and flatter distributions: guesses are then often right, or often wrong.
filters = st.sampled_from([{}, {"temperature": 0.2}, {"temperature": 0.05}, {"top_k": 2},
                           {"top_p": 0.5}, {"temperature": 0.0}])
windows = st.sampled_from([1, 2, 3, 4, 5, 7, 16])


def settings(case, filters: dict) -> dict:
    """The settings of a decode, without those of steps."""
    return {k: v for k, v in case.settings.items() if k not in ("steps", "within_step")} | filters


def both_ways(case, window: int, filters: dict, **more):
    """The ids by one token a step; the ids and passes of exact decoding."""
    how = settings(case, filters) | more
    expected = decode(case.model, case.labels, case.seeds, steps=None, **how)
    return expected, *decode_exact(case.model, case.labels, case.seeds, window, **how)


@for_all(150, case=decodes(), window=windows, filters=filters, lead=st.integers(0, 3))
def test_exact_decoding_draws_the_ids_of_one_token_a_step(case, window, filters, lead):
    """For all grids, orders, windows, batches, guidance, filters and known tokens.

    Broken if a query or a content token sees a wrong guess, a stale slot or too little, if noise or
    guidance depend on the pass, or if a guess is accepted without proof.
    """
    against = [lead] * len(case.labels)
    expected, ids, passes = both_ways(case, window, filters, against=against)
    assert torch.equal(ids, expected), f"window {window}: {ids.tolist()}, not {expected.tolist()}"
    unknown = case.known.count(-1)
    for count in passes.tolist():
        assert min(1, unknown) <= count <= unknown, f"{count} passes for {unknown} tokens"
        assert window > 1 or count == unknown, f"{count} passes of one token each for {unknown}"


def passes_by_hand(model, plan, how: Settings, b: int, window: int) -> int:
    """The passes of sample b: no cache, one query at a time, the mask written out."""
    order, known = plan.orders[b].tolist(), plan.known.tolist()
    final, guessed, passes = 0, 0, 0            # ranks that are final, and that have a draw
    while final < len(order):
        new, asked = {}, range(final, min(final + window, len(order)))
        for rank in asked:
            before = order[:min(rank, guessed)]
            group = torch.tensor([0, *[1] * len(known), *range(2, 2 + len(before))])
            new[order[rank]] = draw_one(model, plan, how, b, [plan.ids.shape[1], *known, *before],
                                        group[:, None] >= group, order[rank], rank + 1)
        same = [int(plan.ids[b, p]) == i for p, i in new.items()]
        final, guessed, passes = final + 1, asked.stop, passes + 1
        while final < asked.stop and same[final - 1 - asked.start]:
            final += 1
        for position, token in new.items():
            plan.ids[b, position] = token
    return passes


@for_all(50, case=decodes(), window=windows, filters=filters)
def test_it_takes_the_passes_of_its_definition(case, window, filters):
    """Broken if a guess is thrown away, seen too late or made from less than there is."""
    how = settings(case, filters)
    ids, passes = decode_exact(case.model, case.labels, case.seeds, window, **how)
    how = Settings(steps=None, **how)
    for b, count in enumerate(passes.tolist()):
        plan = make_plan(case.model, case.labels, case.seeds, how)
        right = passes_by_hand(case.model, plan, how, b, window)
        assert count == right, f"sample {b}: {count} passes, by definition {right}"
        assert torch.equal(plan.ids[b], ids[b]), f"sample {b}: {ids[b]}, not {plan.ids[b]}"


@for_all(60, case=decodes(nothing_known=True), window=windows)
def test_right_guesses_are_final_at_once(case, window):
    """If every token is id 0, whatever is known, then every guess is right. The first pass has no
    guess to check, so it makes one token final. Each later pass makes all guesses final, and the
    token after them.

    Broken if a right guess is not accepted, or if fewer tokens are guessed than the window has.
    """
    model, n = case.new_model(), len(case.known)
    torch.nn.init.zeros_(model.head.weight)
    how = settings(case, {"temperature": 0.0})
    with patch.object(exact, "sample", lambda logits, noise, *_: torch.zeros_like(noise).long()):
        _, passes = decode_exact(model, case.labels, case.seeds, window, **how)
    done, guessed, right = 1, min(window, n), 1
    while done < n:                     # `guessed`: ranks that have a guess, or are final
        done, guessed = min(n, done + window, guessed + 1), min(n, done + window)
        right += 1
    assert passes.tolist() == [right] * len(passes), f"{passes.tolist()} passes, not {right}"


@for_all(60, case=decodes(batch=st.integers(2, 3)), window=windows, filters=filters)
def test_a_sample_depends_on_no_other_in_ids_and_passes(case, window, filters):
    """Broken if samples wait for each other, or if rows get mixed when a finished one leaves."""
    how = settings(case, filters)
    ids, passes = decode_exact(case.model, case.labels, case.seeds, window, **how)
    for b, (label, seed) in enumerate(zip(case.labels, case.seeds)):
        own = how | {"known": how["known"][b]}
        if how["orders"] is not None:
            own["orders"] = how["orders"][b]
        alone, many = decode_exact(case.model, [label], [seed], window, **own)
        assert torch.equal(alone[0], ids[b]), f"sample {b}: {ids[b].tolist()}, alone {alone[0]}"
        assert many[0] == passes[b], f"sample {b}: {passes[b]} passes, alone {many[0]}"


@for_all(60, case=decodes(), window=windows, filters=filters)
def test_what_is_final_never_changes_and_grows_in_every_pass(case, window, filters):
    """Each yield holds the known tokens and the first so many of the order. The last holds all."""
    how = settings(case, filters)
    before, orders = case.known_rows, case.unknown_orders if case.orders else None
    unknown = case.known.count(-1)
    for number, ids in enumerate(exact_steps(case.model, case.labels, case.seeds, window, **how)):
        final, now = before >= 0, ids >= 0
        assert torch.equal(ids[final], before[final]), f"pass {number} changed a final token"
        grown = now.sum(1) > final.sum(1)
        assert (grown | final.all(1)).all(), f"pass {number} made no token final: {grown.tolist()}"
        if orders is not None and unknown:
            by_rank = now.gather(1, orders)
            assert (by_rank == (by_rank.cumsum(1) == torch.arange(1, unknown + 1))).all(), \
                f"pass {number}: final in the order {by_rank.int().tolist()}"
        before = ids.clone()
    assert (before >= 0).all(), f"not drawn: {before.tolist()}"


@for_all(60, seed=st.integers(0, 999), window=windows, guidance=st.sampled_from([1.0, 3.0]),
         hidden=st.booleans())
def test_condition_maps_are_followed(seed, window, guidance, hidden):
    """With maps, the ids are those of one token a step with these maps."""
    model = tiny_model(grid=(2, 3), vocab_size=V, control_stride=2)
    torch.nn.init.normal_(model.control.out.weight)
    maps = torch.rand(3, 1, 4, 6, dtype=torch.float64,
                      generator=torch.Generator().manual_seed(seed))
    if hidden:
        maps[1] = -1
    how = dict(guidance=guidance, control=maps, temperature=0.3)
    labels, seeds = [0, 1, 2], [seed, seed + 1, seed + 2]
    expected = decode(model, labels, seeds, steps=None, **how)
    ids, _ = decode_exact(model, labels, seeds, window, **how)
    assert torch.equal(ids, expected), f"{ids.tolist()}, not {expected.tolist()}"


@for_all(30, case=decodes(batch=st.just(2)), window=windows)
def test_memory_that_was_left_behind_changes_nothing(case, window):
    """The memory of the cache is taken over from an earlier decode. Here it holds NaN. A decode
    that is interrupted leaves nothing behind either."""
    expected, _, _ = both_ways(case, window, {})
    real = Cache.__init__

    def poisoned(self, *sizes, **how):
        real(self, *sizes, **how)
        self.pairs.fill_(torch.nan)
    next(exact_steps(case.model, case.labels, case.seeds, window, **settings(case, {})))
    with patch.object(Cache, "__init__", poisoned):
        ids, _ = decode_exact(case.model, case.labels, case.seeds, window, **settings(case, {}))
    assert torch.equal(ids, expected), f"{ids.tolist()}, not {expected.tolist()}"


def test_float32_draws_nearly_the_same_pictures():
    """In float32 rounding may change a draw. Of 60 pictures at least 57 are equal in all ids."""
    model = tiny_model(torch.float32)
    labels, seeds = [i % 3 for i in range(60)], list(range(60))
    for guidance in (1.0, 2.0):
        ids, _ = decode_exact(model, labels, seeds, 5, guidance=guidance)
        expected = decode(model, labels, seeds, steps=None, guidance=guidance)
        equal = int((ids == expected).all(1).sum())
        assert equal >= 57, f"{equal} of 60 pictures are equal"


@pytest.mark.parametrize("how, says", [
    ({"window": 0}, "window 0: must be a whole number, 1 or more"),
    ({"window": 2.5}, "window 2.5"), ({"steps": 4}, "steps: exact decoding"),
    ({"schedule": "cosine"}, "schedule: exact"), ({"within_step": "block"}, "within_step: exact"),
    ({"top_p": 0}, "top_p 0"), ({"guidance": float("nan")}, "guidance nan")])
def test_mistakes_are_named(how, says):
    with pytest.raises(ValueError, match=says):
        decode_exact(tiny_model(), [0], [0], **how)


def test_guesses_are_right_and_wrong():
    """The properties above say nothing if all guesses are right or all are wrong."""
    model, seeds = tiny_model(), list(range(40))
    _, passes = decode_exact(model, [0] * 40, seeds, 15, temperature=0.2)
    few, many = int(passes.min()), int(passes.max())
    assert 1 < few < many < 15, f"{few} to {many} passes for 15 tokens"
