"""Wrong answers to the exercises of chapter 9."""

import torch

from tutorial.solutions.ch09_measuring import rename as right_rename


def covariances(features, others):
    return (torch.cov(x.double().T).reshape(x.shape[1], -1) for x in (features, others))


def means(features, others):
    return (features.double().mean(0) - others.double().mean(0)).square().sum()


def roots_sum(product):
    return torch.linalg.eigvals(product).real.clamp(min=0).sqrt().sum()


def frechet_distance__trace_of_the_product(features, others):
    """usually:  the trace of C C' itself"""
    c, k = covariances(features, others)
    return float(means(features, others) + c.trace() + k.trace() - 2 * (c @ k).trace())


def frechet_distance__root_of_each_entry(features, others):
    """usually:  a root of every entry of C C'"""
    c, k = covariances(features, others)
    root = (c @ k).clamp(min=0).sqrt()
    return float(means(features, others) + (c + k - 2 * root).trace())


def frechet_distance__standard_deviations(features, others):
    """usually:  standard deviations instead of covariances"""
    deviations = []
    for c in covariances(features, others):
        values, vectors = torch.linalg.eigh(c)
        deviations.append(vectors * values.clamp(min=0).sqrt() @ vectors.T)
    c, k = deviations
    return float(means(features, others) + (c + k).trace() - 2 * roots_sum(c @ k))


def frechet_distance__each_feature_alone(features, others):
    """usually:  each feature on its own"""
    apart = features.double().std(0) - others.double().std(0)
    return float(means(features, others) + apart.square().sum())


def frechet_distance__without_means(features, others):
    """usually:  the means are missing"""
    c, k = covariances(features, others)
    return float((c + k).trace() - 2 * roots_sum(c @ k))


def frechet_distance__means_unsquared(features, others):
    """usually:  the distance of the means was not squared"""
    c, k = covariances(features, others)
    return float(means(features, others).sqrt() + (c + k).trace() - 2 * roots_sum(c @ k))


def frechet_distance__covariance_of_pictures(features, others):
    """raised:   RuntimeError"""
    c, k = (x.double() @ x.double().T / len(x) for x in (features, others))
    return float(means(features, others) + c.trace() + k.trace() - 2 * roots_sum(c @ k))


def frechet_distance__centred_over_the_wrong_axis(features, others):
    """usually:  each row was centred at its own mean"""
    both = [x.double() - x.double().mean(1, keepdim=True) for x in (features, others)]
    c, k = (x.T @ x / (len(x) - 1) for x in both)
    return float(means(features, others) + (c + k).trace() - 2 * roots_sum(c @ k))


def frechet_distance__divided_by_n(features, others):
    """usually:  divided by n"""
    c, k = (torch.cov(x.double().T, correction=0).reshape(x.shape[1], -1)
            for x in (features, others))
    return float(means(features, others) + (c + k).trace() - 2 * roots_sum(c @ k))


def frechet_distance__cross_term_once(features, others):
    """usually:  the cross term occurs once"""
    c, k = covariances(features, others)
    return float(means(features, others) + (c + k).trace() - roots_sum(c @ k))


def frechet_distance__root_of_less_than_zero(features, others):
    """are slightly negative, and their square root is nan"""
    c, k = covariances(features, others)
    cross = torch.linalg.eigvals(c @ k).real.sqrt().sum()
    return float(means(features, others) + (c + k).trace() - 2 * cross)


def frechet_distance__as_if_the_product_were_symmetric(features, others):
    """usually:  eigh needs a symmetric matrix"""
    c, k = covariances(features, others)
    cross = torch.linalg.eigvalsh(c @ k).clamp(min=0).sqrt().sum()
    return float(means(features, others) + (c + k).trace() - 2 * cross)


def frechet_distance__in_float32(features, others):
    """usually:  float32 has seven digits"""
    c, k = (torch.cov(x.T).reshape(x.shape[1], -1) for x in (features, others))
    cross = roots_sum(c.double() @ k.double())
    apart = (features.mean(0) - others.mean(0)).square().sum()
    return float(apart + (c + k).trace() - 2 * cross)


def halves(features, others):
    for c in covariances(features, others):
        values, vectors = torch.linalg.eigh(c)
        yield vectors * values.clamp(min=0).sqrt() @ vectors.T


def frechet_distance__product_of_the_roots(features, others):
    """usually:  tr(C^½ C'^½), which is the trace of (C C')^½ only if C C' = C' C"""
    c, k = covariances(features, others)
    half, other = halves(features, others)
    return float(means(features, others) + (c + k).trace() - 2 * (half @ other).trace())


def frechet_distance__root_at_the_end(features, others):
    """usually:  there is a root at the end"""
    c, k = covariances(features, others)
    return float(means(features, others) + (c + k).trace() - 2 * roots_sum(c @ k)) ** 0.5


def frechet_distance__second_moments(features, others):
    """usually:  second moments about the origin"""
    c, k = (x.double().T @ x.double() / (len(x) - 1) for x in (features, others))
    return float(means(features, others) + (c + k).trace() - 2 * roots_sum(c @ k))


def frechet_distance__eigh_of_nan(features, others):
    """are slightly negative, and their square root is nan"""
    c, k = covariances(features, others)
    values, vectors = torch.linalg.eigh(c)
    half = vectors * values.sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(half @ k @ half).sqrt().sum()
    return float(means(features, others) + (c + k).trace() - 2 * cross)


def frechet_distance__a_tensor(features, others):
    """usually:  the result must be a float"""
    c, k = covariances(features, others)
    return means(features, others) + (c + k).trace() - 2 * roots_sum(c @ k)


def swapped(state, pairs):
    """The state with tensors exchanged: a name with one suffix gets the tensor of the other."""
    result = dict(state)
    for name in state:
        for one, other in pairs:
            if name.endswith(one):
                result[name] = state[name.removesuffix(one) + other]
    return result


def rename__keys_first(state, back=False):
    """usually:  all rows of q, then all of k, then all of v"""
    if back:
        return right_rename(state, back)
    return right_rename(swapped(state, [("to_q.weight", "to_k.weight"),
                                        ("to_k.weight", "to_q.weight")]))


def rename__keys_first_on_the_way_back(state, back=False):
    """usually:  the first third of the rows is q, the second is k, the last is v"""
    renamed = right_rename(state, back)
    return renamed if not back else swapped(renamed, [("to_q.weight", "to_k.weight"),
                                                      ("to_k.weight", "to_q.weight")])


def rename__value_for_gate(state, back=False):
    """usually:  w1 comes first"""
    if back:
        return right_rename(state, back)
    return right_rename(swapped(state, [("w1.weight", "w3.weight"), ("w3.weight", "w1.weight")]))


def rename__transposed(state, back=False):
    """usually:  weights are (outputs, inputs) on both sides"""
    return {name: tensor.T if tensor.ndim == 2 else tensor
            for name, tensor in right_rename(state, back).items()}


def rename__beside(state, back=False):
    """usually:  tensors are stacked row under row"""
    renamed = right_rename(state, back)
    return {name: torch.cat(tensor.chunk(3), dim=1) if "qkv" in name else tensor
            for name, tensor in renamed.items()}


def rename__row_by_row(state, back=False):
    """usually:  all rows of q, then all of k, then all of v"""
    renamed = right_rename(state, back)
    return {name: torch.stack(tensor.chunk(3), dim=1).flatten(0, 1) if "qkv" in name else tensor
            for name, tensor in renamed.items()}


def rename__one_digit(state, back=False):
    """every block number, with one digit or more"""
    return {name: tensor for name, tensor in right_rename(state, back).items()
            if ".10." not in name}


def rename__forgets_the_norms(state, back=False):
    """usually:  every line of the table"""
    return {name: tensor for name, tensor in right_rename(state, back).items()
            if "norm" not in name}


def rename__drops_what_it_does_not_know(state, back=False):
    """if a tensor is dropped without an error"""
    known = {}
    for name, tensor in state.items():
        if not any(word in name for word in ("bias", "cross_dec", "extra")):
            known[name] = tensor
    return right_rename(known, back)


def rename__does_not_say_which(state, back=False):
    """usually:  say which tensor has no place"""
    try:
        return right_rename(state, back)
    except KeyError:
        raise KeyError("unknown tensor") from None


def rename__empties_its_argument(state, back=False):
    """usually:  pop from a copy"""
    renamed = right_rename(state, back)
    state.clear()
    return renamed


def two_sets():
    g = torch.Generator().manual_seed(1)
    mix = torch.randn(3, 3, dtype=torch.float64, generator=g)
    x, y = (torch.randn(n, 3, dtype=torch.float64, generator=g) for n in (8, 11))
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=g)).Q
    return x @ mix + 1, y - 2, torch.tensor([1.0, -2.0, 3.0]).double(), turn


def check_distance__itself_alone(distance):
    """when an implementation leaves out the means"""
    x, y, _, _ = two_sets()
    assert abs(distance(x, x)) < 1e-6 and abs(distance(y, x) - distance(x, y)) < 1e-6


def check_distance__without_rotation(distance):
    """when an implementation looks at each feature on its own"""
    x, y, t, _ = two_sets()
    assert abs(distance(x, x)) < 1e-6 and abs(distance(y, x) - distance(x, y)) < 1e-6
    assert abs(distance(x + t, y + t) - distance(x, y)) < 1e-6
    assert abs(distance(x, x + t) - float(t @ t)) < 1e-6


def check_distance__one_way_round(distance):
    """when an implementation gives another number when the sets are exchanged"""
    x, y, t, turn = two_sets()
    assert abs(distance(x, x)) < 1e-6 and abs(distance(x, x + t) - float(t @ t)) < 1e-6
    assert abs(distance(x @ turn + t, y @ turn + t) - distance(x, y)) < 1e-6


def check_distance__without_a_common_shift(distance):
    """uses second moments about the origin instead of covariances"""
    x, y, t, turn = two_sets()
    assert abs(distance(x, x)) < 1e-6 and abs(distance(y, x) - distance(x, y)) < 1e-6
    assert abs(distance(x @ turn, y @ turn) - distance(x, y)) < 1e-6
    assert distance(x, x + 2 * t) > distance(x, x + t) > 0
    assert distance(x, x + 100 * t) > 5000 * distance(x, x + t)


def check_distance__without_a_common_shift_of_unlike_sets(distance):
    """when an implementation depends on where the origin is"""
    x, y, t, turn = two_sets()
    assert abs(distance(x, x)) < 1e-6 and abs(distance(y, x) - distance(x, y)) < 1e-6
    assert abs(distance(x @ turn, y @ turn) - distance(x, y)) < 1e-6
    assert abs(distance(x, x + t) - float(t @ t)) < 1e-6


def check_distance__any_growth(distance):
    """does not square the distance of the means"""
    x, y, t, turn = two_sets()
    assert abs(distance(x, x)) < 1e-6 and abs(distance(y, x) - distance(x, y)) < 1e-6
    assert abs(distance(x @ turn + t, y @ turn + t) - distance(x, y)) < 1e-6
    assert distance(x, x + 2 * t) > distance(x, x + t) > 0.1


def check_distance__exactly_zero(distance):
    """usually:  the property asks for more than is true"""
    x, y, _, _ = two_sets()
    assert distance(x, x) == 0 and distance(x, y) == distance(y, x)


def check_distance__triangle(distance):
    """usually:  the property asks for more than is true"""
    x, _, t, _ = two_sets()
    assert distance(x, x + 2 * t) <= distance(x, x + t) + distance(x + t, x + 2 * t)


def check_distance__returns_what_it_saw(distance):
    """got: 'no error'"""
    x, _, t, _ = two_sets()
    return abs(distance(x, x)) < 1e-6 and abs(distance(x, x + t) - float(t @ t)) < 1e-6


def standard_error__as_if_independent(first, second):
    """usually:  as if the pictures were independent"""
    return float(((first.double().var() + second.double().var()) / len(first)).sqrt())


def standard_error__of_two_shares(first, second):
    """usually:  as if the pictures were independent"""
    p, q = first.double().mean(), second.double().mean()
    return float(((p * (1 - p) + q * (1 - q)) / len(first)) ** 0.5)


def standard_error__root_two_times(first, second):
    """usually:  as if the pictures were independent: √2 times the error of one share"""
    p = first.double().mean()
    return float((2 * p * (1 - p) / len(first)) ** 0.5)


def standard_error__over_n(first, second):
    """the deviation of a mean of n is √n times smaller"""
    return float((first.double() - second.double()).std() / len(first))


def standard_error__of_one_picture(first, second):
    """usually:  the deviation of one difference"""
    return float((first.double() - second.double()).std())


def standard_error__variance(first, second):
    """usually:  the variance of the mean"""
    return float((first.double() - second.double()).var() / len(first))


def standard_error__divided_by_n(first, second):
    """usually:  divided by n"""
    return float((first.double() - second.double()).std(correction=0) / len(first) ** 0.5)


def standard_error__without_sign(first, second):
    """usually:  the sign was lost"""
    return float((first ^ second).double().std() / len(first) ** 0.5)


def standard_error__of_bools(first, second):
    """raised:   RuntimeError: Subtraction"""
    return float((first - second).double().std() / len(first) ** 0.5)
