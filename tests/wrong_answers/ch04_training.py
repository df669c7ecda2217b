"""Wrong answers to chapter 4: EXERCISE__MISTAKE. The docstring is part of the grader's message."""

import torch
from torch.nn import functional as F

from tutorial.solutions.ch04_training import training_batch as right_batch

# training_batch

def training_batch__not_shifted(tokens, labels, orders, drop, vocab_size, num_classes):
    """the content is not shifted: slot t holds the token that query t must predict"""
    ids, places, targets, asked = right_batch(tokens, labels, orders, drop, vocab_size, num_classes)
    return torch.cat([ids[:, :1], targets[:, 1:]], dim=1), places, targets, asked


def training_batch__targets_shifted_too(tokens, labels, orders, drop, vocab_size, num_classes):
    """the wrong side is shifted"""
    ids, places, targets, asked = right_batch(tokens, labels, orders, drop, vocab_size, num_classes)
    return ids, places, targets.roll(-1, 1), asked


def training_batch__raster(tokens, labels, orders, drop, vocab_size, num_classes):
    """the targets are in raster order"""
    known = torch.where(drop, num_classes, labels)
    ids = torch.cat([vocab_size + 1 + known[:, None], tokens[:, :-1]], dim=1)
    _, places, _, asked = right_batch(tokens, labels, orders, drop, vocab_size, num_classes)
    return ids, places, tokens, asked


def training_batch__raster_content(tokens, labels, orders, drop, vocab_size, num_classes):
    """the content is in raster order"""
    ids, places, targets, asked = right_batch(tokens, labels, orders, drop, vocab_size, num_classes)
    return torch.cat([ids[:, :1], tokens[:, :-1]], dim=1), places, targets, asked


def training_batch__one_order(tokens, labels, orders, drop, vocab_size, num_classes):
    """one order serves the whole batch"""
    return right_batch(tokens, labels, orders[:1].expand_as(orders), drop, vocab_size, num_classes)


def training_batch__inverted(tokens, labels, orders, drop, vocab_size, num_classes):
    """the permutation was inverted"""
    ids, places, _, asked = right_batch(tokens, labels, orders, drop, vocab_size, num_classes)
    targets = torch.zeros_like(tokens).scatter(1, orders, tokens)
    return torch.cat([ids[:, :1], targets[:, :-1]], dim=1), places, targets, asked


def training_batch__no_class_slot(tokens, labels, orders, drop, vocab_size, num_classes):
    """the class slot is missing"""
    targets = tokens.gather(1, orders)
    return targets, orders, targets, orders


def training_batch__one_slot_too_many(tokens, labels, orders, drop, vocab_size, num_classes):
    """the last token is in the content too"""
    ids, places, targets, asked = right_batch(tokens, labels, orders, drop, vocab_size, num_classes)
    return torch.cat([ids[:, :1], targets], dim=1), torch.cat([places[:, :1], orders], dim=1), \
        targets, asked


def training_batch__drop_ignored(tokens, labels, orders, drop, vocab_size, num_classes):
    """drop was ignored"""
    return right_batch(tokens, labels, orders, drop & False, vocab_size, num_classes)


def training_batch__drop_of_all(tokens, labels, orders, drop, vocab_size, num_classes):
    """one sample's drop was applied to the whole batch"""
    everything = torch.full_like(drop, bool(drop.any()))
    return right_batch(tokens, labels, orders, everything, vocab_size, num_classes)


def training_batch__drop_upside_down(tokens, labels, orders, drop, vocab_size, num_classes):
    """drop is inverted"""
    return right_batch(tokens, labels, orders, ~drop, vocab_size, num_classes)


def training_batch__bare_label(tokens, labels, orders, drop, vocab_size, num_classes):
    """the class number was used as a row"""
    return right_batch(tokens, labels, orders, drop, -1, num_classes)


def training_batch__class_on_mask(tokens, labels, orders, drop, vocab_size, num_classes):
    """row V belongs to [MASK]"""
    return right_batch(tokens, labels, orders, drop, vocab_size - 1, num_classes)


def training_batch__null_is_a_class(tokens, labels, orders, drop, vocab_size, num_classes):
    """row V + C belongs to the last class"""
    return right_batch(tokens, labels, orders, drop, vocab_size, num_classes - 1)


def training_batch__class_at_the_corner(tokens, labels, orders, drop, vocab_size, num_classes):
    """the class slot has no position: its place is N, not 0"""
    ids, places, targets, asked = right_batch(tokens, labels, orders, drop, vocab_size, num_classes)
    return ids, torch.cat([0 * places[:, :1], places[:, 1:]], dim=1), targets, asked


def training_batch__places_not_shifted(tokens, labels, orders, drop, vocab_size, num_classes):
    """places and ids disagree"""
    ids, _, targets, asked = right_batch(tokens, labels, orders, drop, vocab_size, num_classes)
    return ids, orders, targets, asked


def training_batch__places_are_slots(tokens, labels, orders, drop, vocab_size, num_classes):
    """places are slot numbers"""
    ids, places, targets, asked = right_batch(tokens, labels, orders, drop, vocab_size, num_classes)
    numbers = torch.arange(places.shape[1] - 1).expand(len(places), -1)
    return ids, torch.cat([places[:, :1], numbers], dim=1), targets, asked


def training_batch__queries_in_raster_order(tokens, labels, orders, drop, vocab_size, num_classes):
    """queries are in raster order"""
    ids, places, targets, _ = right_batch(tokens, labels, orders, drop, vocab_size, num_classes)
    return ids, places, targets, torch.arange(orders.shape[1]).expand_as(orders)


# chunked_loss

def chunked_loss__mean_of_means(hidden, weight, targets, rows):
    """the mean of their means gives the rows of the last chunk more weight"""
    return torch.stack([F.cross_entropy(h @ weight.T, t) for h, t in zip(
        hidden.split(rows), targets.split(rows))]).mean()


def chunked_loss__sum_of_means(hidden, weight, targets, rows):
    """the means of the chunks were added up"""
    return sum(F.cross_entropy(h @ weight.T, t) for h, t in zip(
        hidden.split(rows), targets.split(rows)))


def chunked_loss__sum(hidden, weight, targets, rows):
    """this is the sum"""
    return sum(F.cross_entropy(h @ weight.T, t, reduction="sum") for h, t in zip(
        hidden.split(rows), targets.split(rows)))


def chunked_loss__by_chunks(hidden, weight, targets, rows):
    """divided by the number of chunks, not by the number of rows"""
    return chunked_loss__sum(hidden, weight, targets, rows) / len(targets.split(rows))


def chunked_loss__remainder_dropped(hidden, weight, targets, rows):
    """the last chunk, which is smaller, was dropped"""
    rows = min(rows, len(hidden))
    full = len(hidden) // rows * rows
    return chunked_loss__sum(hidden[:full], weight, targets[:full], rows) / full


def chunked_loss__remainder_counted(hidden, weight, targets, rows):
    """the last chunk was dropped, but its rows were counted"""
    rows = min(rows, len(hidden))
    full = len(hidden) // rows * rows
    return chunked_loss__sum(hidden[:full], weight, targets[:full], rows) / len(targets)


def chunked_loss__cut_graph(hidden, weight, targets, rows):
    """the graph was cut"""
    total = sum(F.cross_entropy(h @ weight.T, t, reduction="sum").item() for h, t in zip(
        hidden.split(rows), targets.split(rows)))
    return torch.tensor(total / len(targets), dtype=hidden.dtype)


def chunked_loss__some_gradient(hidden, weight, targets, rows):
    """the graph does not connect some chunk to the loss"""
    total = 0
    for h, t in zip(hidden.split(rows), targets.split(rows)):
        total = (total.detach() if torch.is_tensor(total) else total) + F.cross_entropy(
            h @ weight.T, t, reduction="sum")
    return total / len(targets)


def chunked_loss__cut_too_late(hidden, weight, targets, rows):
    """all logits were computed before they were split"""
    logits = hidden @ weight.T
    return sum(F.cross_entropy(x, t, reduction="sum") for x, t in zip(
        logits.split(rows), targets.split(rows))) / len(targets)


# check_no_peeking

def trial(seed, raster=False, b=4):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(7, (b, 6), generator=generator)
    orders = torch.rand(b, 6, generator=generator).argsort(1)
    orders = torch.arange(6).expand(b, 6) if raster else orders
    other = torch.randint(7, (b, 6), generator=generator)
    return tokens, torch.arange(b) % 3, orders, other


def changed_from(tokens, orders, other, t):
    return tokens.scatter(1, orders[:, t:], other.gather(1, orders[:, t:]))


def peeks(implementation, trials, ranks=range(6), raster=False, tolerance=1e-9):
    for seed in trials:
        tokens, labels, orders, other = trial(seed, raster)
        before = implementation(tokens, labels, orders)
        for t in ranks:
            after = implementation(changed_from(tokens, orders, other, t), labels, orders)
            assert (after[:, t] - before[:, t]).abs().max() < tolerance


def check_no_peeking__raster_only(implementation):
    """an implementation fills the slots in raster order"""
    peeks(implementation, range(40), raster=True)


def check_no_peeking__loose(implementation):
    """an implementation peeks by 1e-6"""
    peeks(implementation, range(40), tolerance=1e-3)


def check_no_peeking__few_trials(implementation):
    """an implementation peeks only when order[0] is 3"""
    tokens = torch.tensor([[6, 2, 0, 5, 1, 3]])
    orders = torch.tensor([[4, 2, 0, 5, 1, 3]])
    before = implementation(tokens, torch.tensor([1]), orders)
    for t in range(6):
        after = implementation(changed_from(tokens, orders, 6 - tokens, t), torch.tensor([1]),
                               orders)
        assert (after[:, t] - before[:, t]).abs().max() < 1e-9


def check_no_peeking__not_the_last(implementation):
    """an implementation shows only the last query its target"""
    peeks(implementation, range(40), ranks=range(5))


def check_no_peeking__own_token_only(implementation):
    """an implementation shows query t the token after its target"""
    for seed in range(40):
        tokens, labels, orders, other = trial(seed)
        before = implementation(tokens, labels, orders)
        for t in range(6):
            at = orders[:, t:t + 1]
            after = implementation(tokens.scatter(1, at, other.gather(1, at)), labels, orders)
            assert (after[:, t] - before[:, t]).abs().max() < 1e-9


def check_no_peeking__later_tokens_only(implementation):
    """an implementation lets query t see slots 0 to t + 1 (mask off by one)"""
    for seed in range(40):
        tokens, labels, orders, other = trial(seed)
        before = implementation(tokens, labels, orders)
        for t in range(5):
            after = implementation(changed_from(tokens, orders, other, t + 1), labels, orders)
            assert (after[:, t] - before[:, t]).abs().max() < 1e-9


def check_no_peeking__asks_for_use(implementation):
    """the property asks for more than is true"""
    peeks(implementation, range(20))
    tokens, labels, orders, _ = trial(77)
    before = implementation(tokens, labels, orders)
    after = implementation((tokens + 1) % 7, labels, orders)
    assert (after[:, 1:] - before[:, 1:]).abs().max() > 1e-9


def check_no_peeking__hides_too_much(implementation):
    """the property asks for more than is true"""
    for seed in range(40):
        tokens, labels, orders, other = trial(seed)
        before = implementation(tokens, labels, orders)
        for t in range(1, 6):
            after = implementation(changed_from(tokens, orders, other, t - 1), labels, orders)
            assert (after[:, t] - before[:, t]).abs().max() < 1e-9


def check_no_peeking__position_for_rank(implementation):
    """the property asks for more than is true"""
    for seed in range(40):
        tokens, labels, orders, other = trial(seed)
        before = implementation(tokens, labels, orders)
        for t in range(6):
            changed = torch.cat([tokens[:, :t], other[:, t:]], dim=1)
            after = implementation(changed, labels, orders)
            assert (after[:, t] - before[:, t]).abs().max() < 1e-9


def check_no_peeking__answers_instead(implementation):
    """an implementation lets query t see slots 0 to t + 1 (mask off by one)"""
    try:
        peeks(implementation, range(40))
    except AssertionError:
        return False
    return True


def check_no_peeking__other_error(implementation):
    """say what must hold with assert"""
    try:
        peeks(implementation, range(40))
    except AssertionError:
        raise ValueError("it peeks") from None


# average_step

def decay_at(decay, step):
    return min(decay, (1 + step) / (10 + step))


def average_step__renamed(average, weights, decay, step):
    """`a = …` only gives a name to a new tensor"""
    d = decay_at(decay, step)
    for a, w in zip(average, weights):
        a = d * a + (1 - d) * w.detach()                                   # noqa: F841


def average_step__list_filled_anew(average, weights, decay, step):
    """`average[i] = …` only puts a new tensor into the list"""
    d = decay_at(decay, step)
    for i, w in enumerate(weights):
        average[i] = d * average[i] + (1 - d) * w.detach()


def average_step__swapped(average, weights, decay, step):
    """roles are swapped"""
    d = decay_at(decay, step)
    for a, w in zip(average, weights):
        a.copy_((1 - d) * a + d * w.detach())


def average_step__no_warm_up(average, weights, decay, step):
    """the average starts with the final decay"""
    for a, w in zip(average, weights):
        a.lerp_(w.detach(), 1 - decay)


def average_step__largest(average, weights, decay, step):
    """the average starts with the final decay: d = min(decay, …) is 0.1 at first"""
    d = max(decay, (1 + step) / (10 + step))
    for a, w in zip(average, weights):
        a.lerp_(w.detach(), 1 - d)


def average_step__no_limit(average, weights, decay, step):
    """d keeps growing towards 1"""
    for a, w in zip(average, weights):
        a.lerp_(w.detach(), 1 - (1 + step) / (10 + step))


def average_step__wrong_one(average, weights, decay, step):
    """the model's weights were changed"""
    d = decay_at(decay, step)
    with torch.no_grad():
        for a, w in zip(average, weights):
            w.lerp_(a, d)


def average_step__in_the_graph(average, weights, decay, step):
    """the average became part of the graph"""
    d = decay_at(decay, step)
    for a, w in zip(average, weights):
        a.mul_(d).add_((1 - d) * w)


def average_step__weights_frozen(average, weights, decay, step):
    """gradients of the model's weights were turned off"""
    d = decay_at(decay, step)
    for a, w in zip(average, weights):
        a.lerp_(w.requires_grad_(False), 1 - d)


def chunked_loss__so_many_chunks(hidden, weight, targets, rows):
    """.chunk(rows) makes that many chunks"""
    return sum(F.cross_entropy(h @ weight.T, t, reduction="sum")
               for h, t in zip(hidden.chunk(rows), targets.chunk(rows))) / len(targets)


def chunked_loss__float32_sum(hidden, weight, targets, rows):
    """the sum starts in float32"""
    total = torch.zeros(())
    for h, t in zip(hidden.split(rows), targets.split(rows)):
        total += F.cross_entropy(h @ weight.T, t, reduction="sum")
    return total / len(targets)


def chunked_loss__a_number(hidden, weight, targets, rows):
    """.item() or float() makes a number"""
    return sum(F.cross_entropy(h @ weight.T, t, reduction="sum").item()
               for h, t in zip(hidden.split(rows), targets.split(rows))) / len(targets)
