"""Wrong answers of students in chapter 2. Each docstring is part of the grader's message."""

import torch


def _sum(joint, image, known):
    return joint[tuple(image[i].item() if i in known else slice(None)
                       for i in range(joint.ndim))].sum()


def _logs(joint, image, targets, known):
    return torch.stack([(_sum(joint, image, {t, *k}) / _sum(joint, image, set(k))).log()
                        for t, k in zip(targets, known)])


def _right(joint, image, order):
    order = order.tolist()
    return _logs(joint, image, order, [order[:t] for t in range(len(order))])


def log_conditionals__raster_predecessors(joint, image, order):
    """conditioned on those before it in raster order"""
    order = order.tolist()
    return _logs(joint, image, order, [range(p) for p in order])


def log_conditionals__all_others(joint, image, order):
    """each token is conditioned on all others, also on later ones"""
    n = joint.ndim
    return _logs(joint, image, order.tolist(), [set(range(n)) - {p} for p in order.tolist()])


def log_conditionals__independent(joint, image, order):
    """the tokens were treated as independent"""
    return torch.stack([_sum(joint, image, {p}).log() for p in order.tolist()])


def log_conditionals__not_normalised(joint, image, order):
    """p was not divided by p(known tokens)"""
    return torch.stack([_sum(joint, image, set(order[:t + 1].tolist())).log()
                        for t in range(len(order))])


def log_conditionals__inverse(joint, image, order):
    """`order` was read as its inverse"""
    return _right(joint, image, order.argsort())


def log_conditionals__raster(joint, image, order):
    """the order was ignored"""
    return _right(joint, image, torch.arange(len(order)))


def log_conditionals__by_position(joint, image, order):
    """entry t belongs to order[t]"""
    logs = torch.empty(len(order), dtype=joint.dtype)
    logs[order] = _right(joint, image, order)
    return logs


def log_conditionals__probabilities(joint, image, order):
    """that is the probability; return its natural logarithm"""
    return _right(joint, image, order).exp()


def log_conditionals__base_2(joint, image, order):
    """the logarithm has base 2"""
    return _right(joint, image, order) / torch.tensor(2.0).log()


def log_conditionals__upside_down(joint, image, order):
    """the quotient is upside down"""
    return -_right(joint, image, order)


def log_conditionals__image_by_time(joint, image, order):
    """image[t] is the id at position t"""
    moved = torch.empty_like(image)
    moved[order] = image
    return _right(joint, moved % torch.tensor(joint.shape), order)


def log_conditionals__from_the_end(joint, image, order):
    """the order was followed from its end"""
    return _right(joint, image, order.flip(0))


def log_conditionals__list(joint, image, order):
    """return a tensor"""
    return _right(joint, image, order).tolist()


def log_conditionals__float32(joint, image, order):
    """the result must have the dtype of joint"""
    return torch.tensor(_right(joint, image, order).tolist())


def to_raster__once_more(content, orders):
    """the permutation was applied a second time"""
    index = orders.view(*orders.shape, *[1] * (content.ndim - 2)).expand_as(content)
    return content.gather(1, index)


def to_raster__one_order_for_all(content, orders):
    """the first sample's order was used for all samples"""
    return content[:, orders[0].argsort()]


def to_raster__nothing(content, orders):
    """nothing was moved"""
    return content


def to_raster__floats(content, orders):
    """the result must have the dtype of content"""
    raster = torch.zeros(content.shape)
    raster[torch.arange(len(orders))[:, None], orders] = content.float()
    return raster


def to_raster__in_place(content, orders):
    """content was overwritten"""
    content[torch.arange(len(orders))[:, None], orders] = content.clone()
    return content


def to_raster__all_samples(content, orders):
    """raster[:, orders] writes to all samples"""
    raster = torch.empty_like(content)
    raster[:, orders] = content
    return raster


def to_raster__first_number_only(content, orders):
    """only the first number of each vector was moved"""
    index = orders.view(*orders.shape, *[1] * (content.ndim - 2))
    return torch.zeros_like(content).scatter(1, index, content)


def to_raster__ids_only(content, orders):
    """Index tensor must have the same number of dimensions"""
    return torch.empty_like(content).scatter(1, orders, content)


def to_raster__argsort_over_the_batch(content, orders):
    """raster[b, orders[b, t]] must be content[b, t]"""
    index = orders.argsort(0).clamp(max=content.shape[1] - 1)
    return torch.stack([row[i] for row, i in zip(content, index)])


def inputs_and_targets__raster_shift(tokens, class_ids, orders):
    """the shift was made in raster order"""
    shifted = torch.cat([class_ids[:, None], tokens[:, :-1]], dim=1)
    return shifted.gather(1, orders), tokens.gather(1, orders)


def inputs_and_targets__inputs_in_raster_order(tokens, class_ids, orders):
    """the shift was made in raster order"""
    return torch.cat([class_ids[:, None], tokens[:, :-1]], dim=1), tokens.gather(1, orders)


def inputs_and_targets__no_shift(tokens, class_ids, orders):
    """there is no shift"""
    return tokens.gather(1, orders), tokens.gather(1, orders)


def inputs_and_targets__wrong_way(tokens, class_ids, orders):
    """the shift goes the wrong way"""
    targets = tokens.gather(1, orders)
    return torch.cat([targets[:, 1:], class_ids[:, None]], dim=1), targets


def inputs_and_targets__first_left_out(tokens, class_ids, orders):
    """the first token of the order was left out"""
    targets = tokens.gather(1, orders)
    return torch.cat([class_ids[:, None], targets[:, 1:]], dim=1), targets


def inputs_and_targets__class_last(tokens, class_ids, orders):
    """the class is last"""
    targets = tokens.gather(1, orders)
    return torch.cat([targets[:, :-1], class_ids[:, None]], dim=1), targets


def inputs_and_targets__one_too_many(tokens, class_ids, orders):
    """the last token is among the inputs"""
    targets = tokens.gather(1, orders)
    return torch.cat([class_ids[:, None], targets], dim=1), targets


def inputs_and_targets__swapped(tokens, class_ids, orders):
    """inputs and targets are swapped"""
    targets = tokens.gather(1, orders)
    return targets, torch.cat([class_ids[:, None], targets[:, :-1]], dim=1)


def inputs_and_targets__rolled(tokens, class_ids, orders):
    """where the class belongs"""
    targets = tokens.gather(1, orders)
    return targets.roll(1, dims=1), targets


def inputs_and_targets__inverse(tokens, class_ids, orders):
    """the inverse of the order was applied"""
    targets = tokens.gather(1, orders.argsort(1))
    return torch.cat([class_ids[:, None], targets[:, :-1]], dim=1), targets


def inputs_and_targets__targets_in_raster_order(tokens, class_ids, orders):
    """the targets were left in raster order"""
    content = tokens.gather(1, orders)
    return torch.cat([class_ids[:, None], content[:, :-1]], dim=1), tokens


def inputs_and_targets__one_order_for_all(tokens, class_ids, orders):
    """the first sample's order was used for all samples"""
    targets = tokens[:, orders[0]]
    return torch.cat([class_ids[:, None], targets[:, :-1]], dim=1), targets


def _joint(sizes=(2, 3, 4)):
    noise = torch.randn(sizes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise.flatten().softmax(0).view(sizes)


def check_any_order__raster_only(implementation):
    """does not look at what goes wrong when an implementation conditions on earlier tokens in
    raster order"""
    joint, image, order = _joint(), torch.tensor([1, 0, 2]), torch.tensor([0, 1, 2])
    assert torch.allclose(implementation(joint, image, order).sum(), joint[1, 0, 2].log())


def check_any_order__orders_agree(implementation):
    """does not look at what goes wrong when an implementation treats the tokens as independent"""
    joint, image = _joint(), torch.tensor([1, 0, 2])
    one, other = (implementation(joint, image, torch.tensor(order)).sum()
                  for order in ([1, 2, 0], [2, 1, 0]))
    assert torch.allclose(one, other)


def check_any_order__uniform(implementation):
    """does not look at what goes wrong when an implementation treats the tokens as independent"""
    joint, image = torch.full((2, 3, 4), 1 / 24), torch.tensor([1, 0, 2])
    for order in ([1, 2, 0], [2, 1, 0]):
        assert torch.allclose(implementation(joint, image, torch.tensor(order)).sum(),
                              joint[1, 0, 2].log())


def check_any_order__sums_only(implementation):
    """does not look at what goes wrong when an implementation conditions on earlier tokens in
    raster order"""
    joint, image = _joint(), torch.tensor([1, 0, 2])
    for order in ([1, 2, 0], [2, 1, 0], [2, 0, 1]):
        assert torch.allclose(implementation(joint, image, torch.tensor(order)).sum(),
                              joint[1, 0, 2].log())


def check_any_order__orders_that_are_their_own_inverse(implementation):
    """does not look at what goes wrong when an implementation reads the order as its inverse"""
    joint, image = _joint(), torch.tensor([1, 0, 2])
    for order in ([2, 1, 0], [0, 2, 1], [1, 0, 2]):
        order = torch.tensor(order)
        logs = implementation(joint, image, order)
        assert torch.allclose(logs.sum(), joint[1, 0, 2].log())
        for t in range(3):
            changed = image.clone()
            changed[order[t + 1:]] = torch.tensor([0, 2, 1])[order[t + 1:]]
            assert torch.allclose(implementation(joint, changed, order)[:t + 1], logs[:t + 1])


def check_any_order__conditionals_agree(implementation):
    """the property asks for more than is true"""
    joint, image = _joint(), torch.tensor([1, 0, 2])
    one, other = (implementation(joint, image, torch.tensor(order)).sort().values
                  for order in ([1, 2, 0], [2, 1, 0]))
    assert torch.allclose(one, other)
