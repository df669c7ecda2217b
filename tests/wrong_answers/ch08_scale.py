"""Wrong answers to the exercises of chapter 8."""

import math

import numpy as np
import torch


def warmup_cosine__FROM_ZERO(step, steps, warmup, peak, final):
    """off by one: step 0 would learn nothing"""
    if step < warmup:
        return peak * step / warmup
    return final + (peak - final) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def warmup_cosine__FROM_THE_START(step, steps, warmup, peak, final):
    """the cosine runs from the start of training"""
    if step < warmup:
        return peak * (step + 1) / warmup
    return final + (peak - final) * (1 + math.cos(math.pi * step / steps)) / 2


def warmup_cosine__TO_ZERO(step, steps, warmup, peak, final):
    """the cosine ends at 0, not at final"""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def warmup_cosine__LINE(step, steps, warmup, peak, final):
    """that is a line, not a cosine"""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak + (final - peak) * (step - warmup) / (steps - warmup)


def warmup_cosine__REACHES_FINAL(step, steps, warmup, peak, final):
    """the last step, steps - 1, is still above final"""
    if step < warmup:
        return peak * (step + 1) / warmup
    along = (step - warmup) / (steps - 1 - warmup)
    return final + (peak - final) * (1 + math.cos(math.pi * along)) / 2


def warmup_cosine__COUNTS_FROM_1_TWICE(step, steps, warmup, peak, final):
    """the cosine counts from 0"""
    if step < warmup:
        return peak * (step + 1) / warmup
    along = (step + 1 - warmup) / (steps - warmup)
    return final + (peak - final) * (1 + math.cos(math.pi * along)) / 2


def warmup_cosine__ONE_STEP_TOO_LONG(step, steps, warmup, peak, final):
    """step warmup is the first of the cosine"""
    if step <= warmup:
        return peak * (step + 1) / warmup
    return final + (peak - final) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def bytes_of(held, moments=8):
    return {"weights": 4 * held, "gradients": 4 * held, "moments": moments * held,
            "average": 4 * held}


def training_bytes__ONE_MOMENT(shapes, processes, shard):
    """AdamW keeps two moments of every number, not one"""
    count = sum(math.prod(s) for s in shapes)
    return bytes_of(-(-count // processes) if shard else count, moments=4)


def training_bytes__COPIES_ARE_SHARED(shapes, processes, shard):
    """without sharding every process holds a whole copy"""
    return bytes_of(-(-sum(math.prod(s) for s in shapes) // processes))


def training_bytes__NUMBERS(shapes, processes, shard):
    """these are counts of numbers, not bytes"""
    count = sum(math.prod(s) for s in shapes)
    held = -(-count // processes) if shard else count
    return {"weights": held, "gradients": held, "moments": 2 * held, "average": held}


def training_bytes__WEIGHTS_ALONE_ARE_SHARDED(shapes, processes, shard):
    """sharding also spreads gradients, moments and average, not only weights"""
    count = sum(math.prod(s) for s in shapes)
    return bytes_of(count) | ({"weights": 4 * -(-count // processes)} if shard else {})


def training_bytes__SUMS(shapes, processes, shard):
    """the count of a tensor is the product of its sizes, not their sum"""
    count = sum(sum(s) for s in shapes)
    return bytes_of(-(-count // processes) if shard else count)


def training_bytes__ROUNDED_DOWN(shapes, processes, shard):
    """a share is rounded up"""
    count = sum(math.prod(s) for s in shapes)
    return bytes_of(count // processes if shard else count)


def training_bytes__ROUNDED_BY_TENSOR(shapes, processes, shard):
    """a share is rounded up, and only once"""
    return bytes_of(sum(-(-math.prod(s) // (processes if shard else 1)) for s in shapes))


def training_bytes__NEVER_SHARDED(shapes, processes, shard):
    """a process holds its share of the numbers, not all of them"""
    return bytes_of(sum(math.prod(s) for s in shapes))


def training_bytes__OPTIMIZER(shapes, processes, shard):
    """the result must be a dict with the keys weights, gradients, moments, average"""
    count = sum(math.prod(s) for s in shapes)
    held = bytes_of(-(-count // processes) if shard else count)
    return {"optimizer" if k == "moments" else k: v for k, v in held.items()}


def drawn(seed, step, batch, n, *more):
    return torch.from_numpy(
        np.random.default_rng([seed, step, *more]).random((batch, n)).argsort(axis=1))


def span(batch, rank, world):
    return slice(rank * batch // world, (rank + 1) * batch // world)


def rows_of__A_SEED_EACH(seed, step, batch, n, rank, world, micro_batch):
    """the orders are not those of one process: draw them for the whole batch"""
    rows = span(batch, rank, world)
    mine = drawn(seed + rank, step, rows.stop - rows.start, n)
    return [(p, len(p) * world / batch) for p in mine.split(micro_batch)]


def rows_of__MEAN_OF_MEANS(seed, step, batch, n, rank, world, micro_batch):
    """that is a mean of means"""
    pieces = drawn(seed, step, batch, n)[span(batch, rank, world)].split(micro_batch)
    return [(p, 1 / len(pieces)) for p in pieces]


def rows_of__UNWEIGHTED(seed, step, batch, n, rank, world, micro_batch):
    """pieces are added up: with weight 1 the gradient grows with their number"""
    pieces = drawn(seed, step, batch, n)[span(batch, rank, world)].split(micro_batch)
    return [(p, 1.0) for p in pieces]


def rows_of__WHOLE_BATCH(seed, step, batch, n, rank, world, micro_batch):
    """every rank takes the whole batch"""
    return [(p, len(p) / batch) for p in drawn(seed, step, batch, n).split(micro_batch)]


def rows_of__NO_REMAINDER(seed, step, batch, n, rank, world, micro_batch):
    """no rank takes the last rows"""
    each = batch // world
    mine = drawn(seed, step, batch, n)[rank * each:(rank + 1) * each]
    return [(p, len(p) / each) for p in mine.split(micro_batch)]


def rows_of__SUMMED_OVER_RANKS(seed, step, batch, n, rank, world, micro_batch):
    """gradients are averaged over the ranks, not added up"""
    mine = drawn(seed, step, batch, n)[span(batch, rank, world)]
    return [(p, len(p) / batch) for p in mine.split(micro_batch)]


def rows_of__EQUAL_RANKS(seed, step, batch, n, rank, world, micro_batch):
    """right within a rank, but a rank with fewer rows counts as much as others"""
    mine = drawn(seed, step, batch, n)[span(batch, rank, world)]
    return [(p, len(p) / len(mine)) for p in mine.split(micro_batch)]


def rows_of__IN_TURN(seed, step, batch, n, rank, world, micro_batch):
    """a rank takes neighbouring rows"""
    mine = drawn(seed, step, batch, n)[rank::world]
    return [(p, len(p) * world / batch) for p in mine.split(micro_batch)]


def rows_of__RANK_FORGOTTEN(seed, step, batch, n, rank, world, micro_batch):
    """all ranks take the same rows"""
    mine = drawn(seed, step, batch, n)[:batch // world]
    return [(p, len(p) * world / batch) for p in mine.split(micro_batch)]


def rows_of__SO_MANY_PIECES(seed, step, batch, n, rank, world, micro_batch):
    """the largest number of rows that fits in memory, not the number of pieces"""
    mine = drawn(seed, step, batch, n)[span(batch, rank, world)]
    return [(p, len(p) * world / batch) for p in mine.chunk(micro_batch)]


def rows_of__ONE_PIECE(seed, step, batch, n, rank, world, micro_batch):
    """micro_batch is the largest number of rows that fits in memory"""
    mine = drawn(seed, step, batch, n)[span(batch, rank, world)]
    return [(mine, len(mine) * world / batch)]


def check_resume__STREAM_UNDISTURBED(train):
    """when an implementation draws from the global random stream, not from a stream of the step"""
    torch.manual_seed(3)
    whole = train(None, 12)
    torch.manual_seed(3)
    end = train(train(None, 5), 7)
    assert torch.equal(end["weights"], whole["weights"])
    assert torch.equal(end["average"], whole["average"])


def ends(train, again=1):
    whole, middle = train(None, 12), train(None, 5)
    for seed in range(again):
        torch.manual_seed(seed)
        yield whole, train(middle, 7)


def check_resume__WEIGHTS_ALONE(train):
    """when an implementation starts a new running average"""
    for whole, end in ends(train, 2):
        assert torch.equal(whole["weights"], end["weights"])


def check_resume__AVERAGE_ALONE(train):
    """when an implementation returns the average as the weights after a resume"""
    for whole, end in ends(train, 2):
        assert torch.equal(whole["average"], end["average"])


def check_resume__NEARLY(train):
    """when an implementation saves the weights in half precision"""
    for whole, end in ends(train, 2):
        for name in ("weights", "average"):
            assert torch.allclose(whole[name], end[name], atol=1e-2)


def check_resume__LOADED_ONCE(train):
    """when an implementation changes the tensors of the state it was given"""
    for whole, end in ends(train):
        for name in ("weights", "average"):
            assert torch.equal(whole[name], end[name])


def check_resume__MUST_STAND_STILL(train):
    """the property asks for more than is true"""
    assert torch.equal(train(None, 12)["weights"], train(None, 5)["weights"])
