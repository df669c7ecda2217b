"""Wrong answers of students in chapter 1. Each docstring is part of the grader's message."""

import torch
from torch.nn import functional as F


def nearest_ids__rows_not_normalised(features, rows):
    """a row wins because it is long"""
    return (F.normalize(features, dim=-1) @ rows.T).argmax(-1)


def nearest_ids__distance_of_unnormalised(features, rows):
    """a row wins because it has the right length"""
    return (features[..., None, :] - rows).square().sum(-1).argmin(-1)


def nearest_ids__only_features_normalised(features, rows):
    """only the features were normalised; the rows must be normalised"""
    return (F.normalize(features, dim=-1)[..., None, :] - rows).norm(dim=-1).argmin(-1)


def nearest_ids__argmax_of_distance(features, rows):
    """that is the farthest row"""
    features, rows = F.normalize(features, dim=-1), F.normalize(rows, dim=-1)
    return (features[..., None, :] - rows).norm(dim=-1).argmax(-1)


def nearest_ids__rows_along_the_wrong_axis(features, rows):
    """the rows were normalised along the wrong axis"""
    return (features @ F.normalize(rows, dim=0).T).argmax(-1)


def nearest_ids__features_along_the_default_axis(features, rows):
    """F.normalize uses axis 1 by default"""
    return (F.normalize(features) @ F.normalize(rows).T).argmax(-1)


def nearest_ids__flat(features, rows):
    """the ids must have the features' shape without the last axis"""
    flat = features.reshape(-1, features.shape[-1])
    return (flat @ F.normalize(rows, dim=-1).T).argmax(-1)


def nearest_ids__argmax_over_features(features, rows):
    """the ids must have the features' shape without the last axis"""
    return (F.normalize(rows, dim=-1) @ features.mT).argmax(-1)


def nearest_ids__max_for_argmax(features, rows):
    """max also returns the values"""
    return (features @ F.normalize(rows, dim=-1).T).max(-1)


def nearest_ids__rows_in_place(features, rows):
    """the rows were overwritten"""
    rows /= rows.norm(dim=-1, keepdim=True)
    return (features @ rows.T).argmax(-1)


def straight_through__detached_the_wrong_one(features, codes):
    """the decoder got the features, not the codes"""
    return codes + (features - codes).detach()


def straight_through__nothing_learns(features, codes):
    """no gradient reaches the features"""
    return codes.detach()


def straight_through__features_cancel(features, codes):
    """or the remaining gradients cancel"""
    return features + codes.detach() - features


def straight_through__nothing_detached(features, codes):
    """the gradient went only to the codes: nothing was detached"""
    return features + (codes - features)


def straight_through__overwrites_the_features(features, codes):
    """the features were overwritten"""
    features.data.copy_(codes)
    return features


def straight_through__gradient_to_both(features, codes):
    """the gradient goes to both"""
    return features + codes - features.detach()


def straight_through__codes_alone(features, codes):
    """the gradient went only to the codes"""
    return codes


def straight_through__scaled(features, codes):
    """as if nothing had been rounded"""
    return features * (codes / features).detach()


def usage__entropy(ids, size):
    """that is the entropy; the perplexity is its exponential"""
    p = ids.flatten().bincount(minlength=size) / ids.numel()
    return (p > 0).double().mean().item(), torch.special.entr(p).sum().item()


def usage__nan(ids, size):
    """0·ln 0 counts as 0"""
    p = ids.flatten().bincount(minlength=size) / ids.numel()
    return (p > 0).double().mean().item(), (-(p * p.log()).sum()).exp().item()


def usage__two_bases(ids, size):
    """use one base for both"""
    p = ids.unique(return_counts=True)[1] / ids.numel()
    return len(p) / size, (-(p * p.log2()).sum()).exp().item()


def usage__rows_above_the_largest_forgotten(ids, size):
    """also of those above the largest id"""
    p = ids.flatten().bincount() / ids.numel()
    return (p > 0).double().mean().item(), torch.special.entr(p).sum().exp().item()


def usage__rows_in_use(ids, size):
    """depends on how evenly they are used"""
    used = len(ids.unique())
    return used / size, float(used)


def usage__count(ids, size):
    """that is a count of rows"""
    p = ids.flatten().bincount(minlength=size) / ids.numel()
    return len(ids.unique()), torch.special.entr(p).sum().exp().item()


def _shares(ids, size):
    p = ids.flatten().bincount(minlength=size) / ids.numel()
    return (p > 0).double().mean().item(), torch.special.entr(p).sum().exp().item(), p


def usage__swapped(ids, size):
    """the two are swapped"""
    share, perplexity, _ = _shares(ids, size)
    return perplexity, share


def usage__list(ids, size):
    """return a tuple"""
    return list(_shares(ids, size)[:2])


def usage__share_of_ids(ids, size):
    """the number of rows, not of ids"""
    return len(ids.unique()) / ids.numel(), _shares(ids, size)[1]


def usage__without_the_minus(ids, size):
    """without the minus it is negative"""
    share, perplexity, _ = _shares(ids, size)
    return share, 1 / perplexity


def usage__mean(ids, size):
    """a sum over the rows, not a mean"""
    share, _, p = _shares(ids, size)
    return share, torch.special.entr(p).mean().exp().item()


def usage__tensors(ids, size):
    """return two Python floats"""
    p = ids.flatten().bincount(minlength=size) / ids.numel()
    return (p > 0).double().mean(), torch.special.entr(p).sum().exp()


def check_round_trip__unit_rows_only(quantizer):
    """does not look at what goes wrong when an implementation searches among rows that are not
    normalised"""
    rows = F.normalize(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    q, ids = quantizer(rows), torch.tensor([[3, 1, 5], [0, 2, 4]])
    assert torch.equal(q.nearest(q.lookup(ids)), ids)


def check_round_trip__length_not_looked_at(quantizer):
    """does not look at what goes wrong when an implementation gives codes the length of their
    rows"""
    q = quantizer(torch.tensor([[3., 4.], [0., .5], [-5., 0.], [-6., -8.]]))
    ids = torch.tensor([[3, 1, 2], [0, 2, 3]])
    assert torch.equal(q.nearest(q.lookup(ids)), ids)


def check_round_trip__one_id(quantizer):
    """does not look at what goes wrong when an implementation never finds the last row"""
    q, ids = quantizer(torch.tensor([[3., 4.], [0., .5], [-.2, 0.]])), torch.tensor([[1, 0]])
    codes = q.lookup(ids)
    assert torch.allclose(codes.norm(dim=-1), torch.ones(1, 2))
    assert torch.equal(q.nearest(codes), ids)


def check_round_trip__no_opposites(quantizer):
    """does not look at what goes wrong when an implementation confuses a row with its opposite"""
    q = quantizer(torch.tensor([[3., 4.], [0., .5], [-5., 0.]]))
    ids = torch.tensor([[2, 1, 0], [0, 2, 1]])
    codes = q.lookup(ids)
    assert torch.allclose(codes.norm(dim=-1), torch.ones(2, 3))
    assert torch.equal(q.nearest(codes), ids)


def check_round_trip__ids_in_a_row(quantizer):
    """does not look at what goes wrong when an implementation returns ids in one flat list"""
    q = quantizer(torch.tensor([[3., 4.], [0., .5], [-5., 0.], [-6., -8.]]))
    ids = torch.tensor([2, 3, 1, 0])
    codes = q.lookup(ids)
    assert torch.allclose(codes.norm(dim=-1), torch.ones(4))
    assert torch.equal(q.nearest(codes), ids)


def check_round_trip__features_survive(quantizer):
    """the property asks for more than is true"""
    q = quantizer(torch.tensor([[3., 4.], [0., .5], [-5., 0.], [-6., -8.]]))
    features = F.normalize(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert torch.allclose(q.lookup(q.nearest(features)), features)


def check_round_trip__raises_what_it_finds(quantizer):
    """say what must hold with assert; other errors don't count"""
    q = quantizer(torch.tensor([[3., 4.], [0., .5], [-5., 0.], [-6., -8.]]))
    ids = torch.tensor([[2, 3, 1, 0], [0, 1, 3, 2]])
    if not torch.equal(q.nearest(q.lookup(ids)), ids):
        raise ValueError("ids differ")
