"""Wrong answers to chapter 6."""

import torch


def share_of(sizes, step):
    return sum(sizes[:step + 1]) / sum(sizes)


def guide__from_the_conditional(logits, guidance, schedule, sizes, step):
    """the scale starts from the conditional logits"""
    c, u = logits.chunk(2)
    s = guidance if schedule == "constant" else 1 + (guidance - 1) * share_of(sizes, step)
    return c + (c - u) * s


def guide__halves_swapped(logits, guidance, schedule, sizes, step):
    """the halves are swapped"""
    u, c = logits.chunk(2)
    s = guidance if schedule == "constant" else 1 + (guidance - 1) * share_of(sizes, step)
    return u + (c - u) * s


def guide__on_probabilities(logits, guidance, schedule, sizes, step):
    """the formula was applied to probabilities"""
    c, u = logits.softmax(-1).chunk(2)
    s = guidance if schedule == "constant" else 1 + (guidance - 1) * share_of(sizes, step)
    return u + (c - u) * s


def guide__on_probabilities_then_log(logits, guidance, schedule, sizes, step):
    """the formula was applied to probabilities"""
    c, u = logits.softmax(-1).chunk(2)
    s = guidance if schedule == "constant" else 1 + (guidance - 1) * share_of(sizes, step)
    return (u + (c - u) * s).clamp(min=1e-12).log()


def guide__one_step_early(logits, guidance, schedule, sizes, step):
    """it reaches `guidance` one step early"""
    c, u = logits.chunk(2)
    share = min(1, sum(sizes[:step + 2]) / sum(sizes))
    s = guidance if schedule == "constant" else 1 + (guidance - 1) * share
    return u + (c - u) * s


def guide__own_tokens_not_counted(logits, guidance, schedule, sizes, step):
    """without them the last step never reaches `guidance`"""
    c, u = logits.chunk(2)
    s = guidance if schedule == "constant" else 1 + (guidance - 1) * share_of(sizes, step - 1)
    return u + (c - u) * s


def guide__steps_counted(logits, guidance, schedule, sizes, step):
    """counted in steps, not in tokens"""
    c, u = logits.chunk(2)
    s = guidance if schedule == "constant" else 1 + (guidance - 1) * (step + 1) / len(sizes)
    return u + (c - u) * s


def guide__steps_counted_from_zero(logits, guidance, schedule, sizes, step):
    """counted in steps, not in tokens"""
    c, u = logits.chunk(2)
    s = guidance if schedule == "constant" else 1 + (guidance - 1) * step / (len(sizes) - 1)
    return u + (c - u) * s


def guide__from_zero(logits, guidance, schedule, sizes, step):
    """the scale rises from 0"""
    c, u = logits.chunk(2)
    s = guidance if schedule == "constant" else guidance * share_of(sizes, step)
    return u + (c - u) * s


def guide__rows_interleaved(logits, guidance, schedule, sizes, step):
    """rows of c and u were taken alternately"""
    c, u = logits[::2], logits[1::2]
    s = guidance if schedule == "constant" else 1 + (guidance - 1) * share_of(sizes, step)
    return u + (c - u) * s


def guide__probabilities_returned(logits, guidance, schedule, sizes, step):
    """return logits, not probabilities"""
    c, u = logits.chunk(2)
    s = guidance if schedule == "constant" else 1 + (guidance - 1) * share_of(sizes, step)
    return (u + (c - u) * s).softmax(-1)


def guide__this_step_alone(logits, guidance, schedule, sizes, step):
    """only the tokens of this step were counted"""
    c, u = logits.chunk(2)
    share = sizes[step] / sum(sizes)
    return u + (c - u) * (guidance if schedule == "constant" else 1 + (guidance - 1) * share)


def guide__beyond_guidance(logits, guidance, schedule, sizes, step):
    """1 + guidance · share ends at guidance + 1"""
    c, u = logits.chunk(2)
    s = guidance if schedule == "constant" else 1 + guidance * share_of(sizes, step)
    return u + (c - u) * s


def guide__always_constant(logits, guidance, schedule, sizes, step):
    """which is the constant schedule"""
    c, u = logits.chunk(2)
    return u + (c - u) * guidance


def top_p__crossing_id_cut(logits, p):
    """the id that makes the total reach p was cut"""
    ranked, ids = logits.sort(dim=-1, descending=True)
    total = ranked.softmax(-1).cumsum(-1)
    cut = torch.zeros_like(total, dtype=torch.bool).scatter(-1, ids, total >= p)
    return logits.masked_fill(cut, -torch.inf)


def top_p__crossing_id_cut_but_for_the_first(logits, p):
    """the id that makes the total reach p was cut"""
    ranked, ids = logits.sort(dim=-1, descending=True)
    total = ranked.softmax(-1).cumsum(-1)
    total[..., 0] = 0.0
    cut = torch.zeros_like(total, dtype=torch.bool).scatter(-1, ids, total >= p)
    return logits.masked_fill(cut, -torch.inf)


def top_p__ascending(logits, p):
    """ids were added up from the least likely"""
    ranked, ids = logits.sort(dim=-1)
    probabilities = ranked.softmax(-1)
    likelier = probabilities.cumsum(-1) - probabilities
    cut = torch.zeros_like(likelier, dtype=torch.bool).scatter(-1, ids, likelier >= p)
    return logits.masked_fill(cut, -torch.inf)


def top_p__not_put_back(logits, p):
    """scatter it by the indices of the sort"""
    probabilities = logits.sort(dim=-1, descending=True).values.softmax(-1)
    return logits.masked_fill(probabilities.cumsum(-1) - probabilities >= p, -torch.inf)


def top_p__gathered_in_place_of_scattered(logits, p):
    """scatter it by the indices of the sort"""
    ranked, ids = logits.sort(dim=-1, descending=True)
    probabilities = ranked.softmax(-1)
    return logits.masked_fill((probabilities.cumsum(-1) - probabilities >= p).gather(-1, ids),
                              -torch.inf)


def top_p__threshold_on_each_id(logits, p):
    """an id stays if the likelier ones together have not reached p"""
    likeliest = logits.softmax(-1).amax(-1, keepdim=True)
    return logits.masked_fill(logits.softmax(-1) < (1 - p) * likeliest, -torch.inf)


def top_p__probabilities_returned(logits, p):
    """the ids that stay keep the given logits, not probabilities"""
    ranked, ids = logits.softmax(-1).sort(dim=-1, descending=True)
    cut = torch.zeros_like(ranked, dtype=torch.bool).scatter(
        -1, ids, ranked.cumsum(-1) - ranked >= p)
    return logits.softmax(-1).masked_fill(cut, -torch.inf)


def top_p__rows_mixed(logits, p):
    """an id stays if the likelier ones together have not reached p"""
    ranked, ids = logits.flatten().sort(descending=True)
    probabilities = ranked.softmax(-1)
    cut = torch.zeros_like(ranked, dtype=torch.bool).scatter(
        -1, ids, probabilities.cumsum(-1) - probabilities >= p)
    return logits.masked_fill(cut.view_as(logits), -torch.inf)


def random_pairs():
    for seed in range(30):
        g = torch.Generator().manual_seed(seed)
        yield 2 * torch.randn(2, 4, generator=g, dtype=torch.float64)


def close(a, b):
    return torch.allclose(a.softmax(-1), b.softmax(-1), rtol=0, atol=1e-9)


def check_guidance__ends_alone(implementation):
    """the property does not look at what goes wrong when an implementation changes its
    result when a constant is added to c"""
    for c, u in random_pairs():
        assert close(implementation(c, u, 1.0), c) and close(implementation(c, u, 0.0), u)


def check_guidance__no_constants(implementation):
    """the property does not look at what goes wrong when an implementation changes its
    result when a constant is added to c"""
    check_guidance__ends_alone(implementation)
    for c, u in random_pairs():
        low, high = (implementation(c, u, s) for s in (0.5, 2.0))
        favoured = (c - u).argmax()
        assert (high[favoured] - high >= low[favoured] - low - 1e-9).all()


def check_guidance__constants_of_c_alone(implementation):
    """the property does not look at what goes wrong when an implementation changes its
    result when a constant is added to u"""
    check_guidance__no_constants(implementation)
    for c, u in random_pairs():
        assert close(implementation(c + 3, u, 2.0), implementation(c, u, 2.0))


def check_guidance__s_one_alone(implementation):
    """the property does not look at what goes wrong when an implementation replaces every s
    below 1 by 1"""
    for c, u in random_pairs():
        assert close(implementation(c, u, 1.0), c)


def check_guidance__s_zero_alone(implementation):
    """the property does not look at what goes wrong when an implementation guides half as much as
    it should"""
    for c, u in random_pairs():
        assert close(implementation(c, u, 0.0), u)


def check_guidance__no_larger_s(implementation):
    """the property does not look at what goes wrong when an implementation gets weaker
    beyond s = 1"""
    for c, u in random_pairs():
        assert close(implementation(c, u, 1.0), c) and close(implementation(c, u, 0.0), u)
        assert close(implementation(c + 3, u - 1, 2.0), implementation(c, u, 2.0))


def check_guidance__probability_alone(implementation):
    """the property asks for more than is true"""
    check_guidance__no_larger_s(implementation)
    for c, u in random_pairs():
        likeliest = c.argmax()                  # of c, not of c - u: guidance may well lower it
        low, high = (implementation(c, u, s).softmax(-1)[likeliest] for s in (1.0, 3.0))
        assert high >= low - 1e-9


def check_guidance__two_scales_above_one(implementation):
    """the property does not look at what goes wrong when an implementation moves in the wrong
    direction between s = 0 and s = 1"""
    check_guidance__no_larger_s(implementation)
    for c, u in random_pairs():
        favoured = (c - u).argmax()
        low, high = (implementation(c, u, s) for s in (2.0, 3.0))
        assert (high[favoured] - high >= low[favoured] - low - 1e-9).all()
        assert close(implementation(c + 3, u, 0.5), implementation(c, u, 0.5))


def check_guidance__probability_of_the_favoured(implementation):
    """the property does not look at what goes wrong when an implementation lets another id gain on
    the favoured one beyond s = 1"""
    check_guidance__no_larger_s(implementation)
    for c, u in random_pairs():
        favoured, before = (c - u).argmax(), 0.0
        for s in (0.0, 0.3, 0.6, 1.0, 2.0, 4.0):
            share = implementation(c, u, s).softmax(-1)[favoured]
            assert share >= before - 1e-9
            before = share


def check_guidance__logits_not_distributions(implementation):
    """the property asks for more than is true"""
    for c, u in random_pairs():
        assert torch.allclose(implementation(c, u, 1.0), c)
        assert torch.allclose(implementation(c + 3, u, 2.0), implementation(c, u, 2.0))


def check_guidance__returns_a_bool(implementation):
    """an implementation that swaps the halves"""
    c, u = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)
    return close(implementation(c, u, 1.0), c)


def agreement__one_after_the_other(joint):
    """one step draws both independently"""
    return joint.diagonal(dim1=1, dim2=2).sum(1)


def agreement__first_twice(joint):
    """both tokens were given the first one's distribution"""
    return joint.sum(2).square().sum(1)


def agreement__even_odds(joint):
    """1/V is right only if each id is as likely as any other"""
    return torch.full((len(joint),), 1 / joint.shape[1], dtype=joint.dtype)


def agreement__over_the_batch(joint):
    """usually:  one number for each of the B data sets"""
    first, second = joint.sum(2), joint.sum(1)
    return (first * second).sum(0)
