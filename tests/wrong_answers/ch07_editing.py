"""Wrong answers to the exercises of chapter 7."""

import torch
from torch.nn import functional as F


def cells_of_box__SWAPPED(box, stride, grid):
    """rows and columns are swapped: x counts columns"""
    x0, y0, x1, y1 = box
    touched = torch.zeros(grid, dtype=torch.bool)
    touched[x0 // stride:-(-x1 // stride), y0 // stride:-(-y1 // stride)] = True
    return touched


def cells_of_box__FLOOR(box, stride, grid):
    """the end is rounded down, which loses the last touched cell"""
    x0, y0, x1, y1 = (n // stride for n in box)
    touched = torch.zeros(grid, dtype=torch.bool)
    touched[y0:y1, x0:x1] = True
    return touched


def cells_of_box__ONE_TOO_MANY(box, stride, grid):
    """off by one at the end: x1 and y1 are the first pixels outside"""
    x0, y0, x1, y1 = (n // stride for n in box)
    touched = torch.zeros(grid, dtype=torch.bool)
    touched[y0:y1 + 1, x0:x1 + 1] = True
    return touched


def cells_of_box__WHOLLY_INSIDE(box, stride, grid):
    """only cells wholly inside the box are marked"""
    x0, y0, x1, y1 = box
    touched = torch.zeros(grid, dtype=torch.bool)
    touched[-(-y0 // stride):y1 // stride, -(-x0 // stride):x1 // stride] = True
    return touched


def cells_of_box__LAST_CELL_AS_END(box, stride, grid):
    """a slice stops before its end: add 1"""
    x0, y0, x1, y1 = box
    touched = torch.zeros(grid, dtype=torch.bool)
    touched[y0 // stride:(y1 - 1) // stride, x0 // stride:(x1 - 1) // stride] = True
    return touched


def cells_of_box__NUMBERS(box, stride, grid):
    """a mask is bool"""
    x0, y0, x1, y1 = box
    touched = torch.zeros(grid, dtype=torch.int64)
    touched[y0 // stride:-(-y1 // stride), x0 // stride:-(-x1 // stride)] = 1
    return touched


def place__SWAPPED(ids, grid, at):
    """at is the (row, column) of the picture's top left id"""
    column, row = at
    if min(at) < 0 or at[0] + ids.shape[0] > grid[0] or at[1] + ids.shape[1] > grid[1]:
        raise ValueError("does not fit")
    known = torch.full(grid, -1)
    part = known[row:row + ids.shape[0], column:column + ids.shape[1]]
    part[:] = ids[:part.shape[0], :part.shape[1]]
    return known


def place__ZEROS(ids, grid, at):
    """0 is an id like any other; unknown is -1"""
    if min(at) < 0 or at[0] + ids.shape[0] > grid[0] or at[1] + ids.shape[1] > grid[1]:
        raise ValueError("does not fit")
    known = torch.zeros(grid, dtype=torch.int64)
    known[at[0]:at[0] + ids.shape[0], at[1]:at[1] + ids.shape[1]] = ids
    return known


def place__FLOATS(ids, grid, at):
    """ids are whole numbers"""
    if min(at) < 0 or at[0] + ids.shape[0] > grid[0] or at[1] + ids.shape[1] > grid[1]:
        raise ValueError("does not fit")
    known = -torch.ones(grid)
    known[at[0]:at[0] + ids.shape[0], at[1]:at[1] + ids.shape[1]] = ids.float()
    return known


def place__UNCHECKED(ids, grid, at):
    """a negative index counts from the end, and a slice that reaches too far is cut"""
    known = torch.full(grid, -1)
    part = known[at[0]:at[0] + ids.shape[0], at[1]:at[1] + ids.shape[1]]
    part[:] = ids[:part.shape[0], :part.shape[1]]
    return known


def place__MUST_BE_SMALLER(ids, grid, at):
    """the picture fits: row + h may equal H"""
    if min(at) < 0 or at[0] + ids.shape[0] >= grid[0] or at[1] + ids.shape[1] >= grid[1]:
        raise ValueError("does not fit")
    known = torch.full(grid, -1)
    known[at[0]:at[0] + ids.shape[0], at[1]:at[1] + ids.shape[1]] = ids
    return known


def place__LEFT_TO_PYTORCH(ids, grid, at):
    """PyTorch raises an error for some pictures that do not fit, but not for all"""
    known = torch.full(grid, -1)
    known[at[0]:at[0] + ids.shape[0], at[1]:at[1] + ids.shape[1]] = ids
    return known


def cells_touched(mask, stride):
    return F.max_pool2d(mask[None].float(), stride)[0] > 0


def inpaint__INVERTED(images, mask, stride, encode, decode, to_pixels):
    """the mask is inverted: cells under it are unknown"""
    ids = encode(images.masked_fill(mask, 0))
    known = ids.masked_fill(~cells_touched(mask, stride), -1)
    return torch.where(mask, to_pixels(decode(known.flatten(1)).view_as(ids)), images)


def inpaint__ZERO_IS_UNKNOWN(images, mask, stride, encode, decode, to_pixels):
    """no cell is -1, so nothing is drawn"""
    ids = encode(images.masked_fill(mask, 0))
    known = ids.masked_fill(cells_touched(mask, stride), 0)
    return torch.where(mask, to_pixels(decode(known.flatten(1)).view_as(ids)), images)


def inpaint__AS_A_GRID(images, mask, stride, encode, decode, to_pixels):
    """decode takes known ids (B, h·w), not"""
    ids = encode(images.masked_fill(mask, 0))
    known = ids.masked_fill(cells_touched(mask, stride), -1)
    return torch.where(mask, to_pixels(decode(known)), images)


def inpaint__WHOLLY_INSIDE(images, mask, stride, encode, decode, to_pixels):
    """a partly covered cell must be drawn too: its id describes pixels that are gone"""
    ids = encode(images.masked_fill(mask, 0))
    known = ids.masked_fill(~cells_touched(~mask, stride), -1)
    return torch.where(mask, to_pixels(decode(known.flatten(1)).view_as(ids)), images)


def inpaint__MAJORITY(images, mask, stride, encode, decode, to_pixels):
    """a partly covered cell must be drawn too, even for one covered pixel"""
    ids = encode(images.masked_fill(mask, 0))
    known = ids.masked_fill(F.avg_pool2d(mask[None].float(), stride)[0] > 0.5, -1)
    return torch.where(mask, to_pixels(decode(known.flatten(1)).view_as(ids)), images)


def inpaint__REDRAWS_ALL(images, mask, stride, encode, decode, to_pixels):
    """the decoder gets no known id, so what it draws cannot fit"""
    ids = encode(images.masked_fill(mask, 0))
    drawn = decode(torch.full_like(ids, -1).flatten(1)).view_as(ids)
    drawn = torch.where(cells_touched(mask, stride), drawn, ids)
    return torch.where(mask, to_pixels(drawn), images)


def inpaint__LEAKS(images, mask, stride, encode, decode, to_pixels):
    """the encoder saw the pixels under the mask"""
    ids = encode(images)
    known = ids.masked_fill(cells_touched(mask, stride), -1)
    return torch.where(mask, to_pixels(decode(known.flatten(1)).view_as(ids)), images)


def inpaint__NOT_COMPOSITED(images, mask, stride, encode, decode, to_pixels):
    """take the pixels outside the mask from the given picture"""
    ids = encode(images.masked_fill(mask, 0))
    known = ids.masked_fill(cells_touched(mask, stride), -1)
    return to_pixels(decode(known.flatten(1)).view_as(ids))


def inpaint__WHOLE_CELLS(images, mask, stride, encode, decode, to_pixels):
    """whole cells were replaced"""
    ids = encode(images.masked_fill(mask, 0))
    touched = cells_touched(mask, stride)
    made = to_pixels(decode(ids.masked_fill(touched, -1).flatten(1)).view_as(ids))
    wide = touched.repeat_interleave(stride, 0).repeat_interleave(stride, 1)
    return torch.where(wide, made, images)


def inpaint__HIDES_IN_PLACE(images, mask, stride, encode, decode, to_pixels):
    """the function wrote into images"""
    images[:, :, mask] = 0
    ids = encode(images)
    known = ids.masked_fill(cells_touched(mask, stride), -1)
    return torch.where(mask, to_pixels(decode(known.flatten(1)).view_as(ids)), images)


def grids(lowest, count):
    generator = torch.Generator().manual_seed(5)
    for seed in range(count):
        ids = torch.randint(lowest, 7, (12,), generator=generator)
        unknown = torch.rand(12, generator=generator) < 0.5
        unknown[seed % 12] = True
        yield seed, ids.masked_fill(unknown, -1)


def check_known_stays__LOOKS_AT_KNOWN_ALONE(complete):
    """when an implementation pastes known ids onto a picture that was drawn without them"""
    for seed, known in grids(0, 20):
        drawn = complete(known, seed)
        assert torch.equal(drawn[known >= 0], known[known >= 0]) and (drawn >= 0).all()


def changed(complete, changes):
    """Whether the drawn ids change with `changes(known)` for at least one of thirty seeds."""
    known = torch.full((12,), -1)
    known[3], known[8] = 5, 1
    drawn = known < 0
    return any(not torch.equal(complete(known, seed)[drawn], complete(changes(known), seed)[drawn])
               for seed in range(30))


def check_known_stays__NO_ID_0(complete):
    """when an implementation treats id 0 as unknown"""
    for seed, known in grids(1, 20):
        drawn = complete(known, seed)
        assert torch.equal(drawn[known >= 0], known[known >= 0]) and (drawn >= 0).all()
    assert changed(complete, lambda known: torch.where(known == 5, 2, known))
    assert changed(complete, lambda known: torch.where(known == 1, 2, known))


def check_known_stays__CHANGES_THE_LAST_ALONE(complete):
    """when an implementation does not read the first known cell"""
    for seed, known in grids(0, 20):
        drawn = complete(known, seed)
        assert torch.equal(drawn[known >= 0], known[known >= 0]) and (drawn >= 0).all()
    assert changed(complete, lambda known: torch.where(known == 1, 2, known))


def check_known_stays__ONE_KNOWN_AT_A_TIME(complete):
    """when an implementation reads only the first known cell"""
    for seed, known in grids(0, 20):
        drawn = complete(known, seed)
        assert torch.equal(drawn[known >= 0], known[known >= 0]) and (drawn >= 0).all()
    for position in range(12):
        one = torch.where(torch.arange(12) == position, 0, -1)
        other = torch.where(torch.arange(12) == position, 5, -1)
        assert any(not torch.equal(complete(one, seed)[one < 0], complete(other, seed)[one < 0])
                   for seed in range(8))


def check_known_stays__ALL_CHANGED_AT_ONCE(complete):
    """when an implementation reads only the first known cell"""
    for seed, known in grids(0, 20):
        drawn = complete(known, seed)
        assert torch.equal(drawn[known >= 0], known[known >= 0]) and (drawn >= 0).all()
    assert changed(complete, lambda known: torch.where(known >= 0, 2, known))


def check_known_stays__EVERY_DRAW_MUST_CHANGE(complete):
    """the property asks for more than is true"""
    for seed, known in grids(0, 20):
        drawn, other = complete(known, seed), known.clone()
        assert torch.equal(drawn[known >= 0], known[known >= 0]) and (drawn >= 0).all()
        first = (known >= 0).nonzero()[0]
        other[first] = (known[first] + 1) % 7
        assert not torch.equal(complete(other, seed)[known < 0], drawn[known < 0])


def check_known_stays__FORGETS_WHAT_IS_UNKNOWN(complete):
    """when an implementation leaves the last unknown cell at -1"""
    for seed, known in grids(0, 20):
        drawn = complete(known, seed)
        assert torch.equal(drawn[known >= 0], known[known >= 0])
    assert changed(complete, lambda known: torch.where(known == 5, 2, known))
    assert changed(complete, lambda known: torch.where(known == 1, 2, known))
