"""Graders of chapter 7."""

import numpy as np
import torch

from arpg_mini import ARPG, ModelConfig
from arpg_mini.decoding import decode
from tutorial.exercises.grading import attempt, expect, fail, judge

CHAPTER = "ch07_editing"


def same(got, other) -> bool:
    return isinstance(got, torch.Tensor) and got.shape == other.shape and torch.equal(
        got.to(other.dtype), other)


def explain(got, guesses: list[tuple[torch.Tensor, str]], otherwise: str) -> str:
    """The reason of the guess that equals `got`; else `otherwise`."""
    return next((reason for guess, reason in guesses if same(got, guess)), otherwise)


# cells_of_box

def cells(rows: range, columns: range, grid) -> torch.Tensor:
    return torch.tensor([[r in rows and c in columns for c in range(grid[1])]
                         for r in range(grid[0])])


def test_cells_of_box(answers):
    cells_of_box = answers("cells_of_box")
    for box, stride, grid in [((3, 2, 9, 8), 4, (3, 4)), ((5, 1, 14, 7), 5, (2, 4)),
                              ((6, 12, 18, 23), 6, (5, 3)), ((9, 3, 12, 7), 3, (3, 4)),
                              ((13, 6, 14, 7), 7, (3, 2)), ((2, 1, 3, 9), 3, (4, 5))]:
        x0, y0, x1, y1 = box
        call = f"cells_of_box({box}, stride={stride}, grid={grid})"
        got = attempt(call, lambda: cells_of_box(box, stride, grid))
        # By the definition: check every pixel of every cell.
        expected = torch.tensor([[any(x0 <= x < x1 and y0 <= y < y1
                                      for y in range(r * stride, (r + 1) * stride)
                                      for x in range(c * stride, (c + 1) * stride))
                                  for c in range(grid[1])] for r in range(grid[0])])
        up = [-(-n // stride) for n in box]
        down = [n // stride for n in box]
        guesses = [
            (cells(range(down[0], up[2]), range(down[1], up[3]), grid),
             "rows and columns are swapped: x counts columns, the second axis of the mask"),
            (cells(range(down[0], up[2]), range(down[1], up[3]), grid[::-1]),
             "rows and columns are swapped: grid is (h, w), and x counts columns"),
            (cells(range(down[1], up[3] - 1), range(down[0], up[2] - 1), grid),
             "the last touched cell is (x1 - 1) // stride, and a slice stops before its end: "
             "add 1"),
            (cells(range(down[1], down[3]), range(down[0], down[2]), grid),
             "the end is rounded down, which loses the last touched cell: round it up"),
            (cells(range(up[1], down[3]), range(up[0], down[2]), grid),
             "only cells wholly inside the box are marked; one pixel inside is enough"),
            (cells(range(down[1], down[3] + 1), range(down[0], down[2] + 1), grid),
             "off by one at the end: x1 and y1 are the first pixels outside; if x1 is a multiple "
             "of the stride, the cell that starts at x1 is not touched")]
        usually = explain(got, guesses, "a cell counts if at least one of its pixels is in the "
                          "box: round starts down and ends up")
        expect(call, got, expected, usually)
        if got.dtype != torch.bool:
            fail(call, got, expected, "a mask is bool: the numbers 0 and 1 would be used as "
                 "indices, not as a mask")


# place

def placed(place, *given):
    """What `place` returns or the error it raises; raises "still to write" again."""
    try:
        return place(*given)
    except NotImplementedError:
        raise
    except Exception as error:
        return error


def test_place(answers):
    place = answers("place")
    rng = np.random.default_rng(71)
    for (h, w), grid, (row, column) in [((2, 3), (4, 7), (1, 3)), ((1, 4), (3, 6), (2, 0)),
                                        ((3, 2), (3, 5), (0, 3))]:
        ids = torch.from_numpy(rng.permutation(9)[:h * w].reshape(h, w))
        call = f"place({ids.tolist()}, grid={grid}, at={(row, column)})"
        before = ids.clone()
        got = attempt(call, lambda: placed(place, ids, grid, (row, column)))
        expected = torch.tensor([[int(before[r - row, c - column]) if row <= r < row + h
                                  and column <= c < column + w else -1 for c in range(grid[1])]
                                 for r in range(grid[0])])
        usually = "at is the (row, column) of the picture's top left id"
        if isinstance(got, ValueError):
            usually = "the picture fits: row + h may equal H, and column + w may equal W"
        if isinstance(got, torch.Tensor) and got.shape == expected.shape:
            if got.is_floating_point():
                usually = "ids are whole numbers: make the grid with dtype int64, like the ids"
            elif same(got, expected.clamp(min=0)):
                usually = "0 is an id like any other; unknown is -1"
        expect(call, got, expected, usually)
        if not torch.equal(ids, before):
            fail(call, ids, before, "the function wrote into the given ids")


def test_place__fits(answers):
    place = answers("place")
    ids = torch.tensor([[4, 1, 6], [2, 0, 5]])
    for at in [(3, 1), (1, 4), (-1, 2), (0, -1), (-2, -3)]:
        call = f"place(2x3 ids, grid=(4, 6), at={at})"
        got = attempt(call, lambda: placed(place, ids, (4, 6), at))
        if isinstance(got, Exception) and not isinstance(got, ValueError):
            fail(call, got, "ValueError", "PyTorch raises an error for some pictures that do not "
                 "fit, but not for all; assert is for tests: check first, then raise ValueError")
        if not isinstance(got, ValueError):
            fail(call, got, "ValueError", "a negative index counts from the end, and a slice that "
                 "reaches too far is cut, without an error: check first")
    call = "place(2x3 ids, grid=(4, 6), at=(2, 3))"
    expect(call, tuple(attempt(call, lambda: place(ids, (4, 6), (2, 3))).shape), (4, 6),
           "a picture that just fits is allowed")


# inpaint: a tokenizer and a decoder of a few lines, which record their inputs.

class Listening:
    """encode, decode and to_pixels, which keep what they are given. As with a real encoder, an id
    depends on its own cell and on the whole picture."""

    def __init__(self, stride: int):
        self.stride, self.seen, self.known, self.drawn = stride, [], [], []

    def encode(self, images):
        self.seen.append(images.detach().clone())
        means = torch.nn.functional.avg_pool2d(images.double(), self.stride).mean(1)
        everywhere = images.double().flatten(1).mean(1)[:, None, None]
        return ((means + 3 * everywhere) * 1000).round().long() % 50

    def decode(self, known):
        if known.ndim != 2:
            raise ValueError(f"decode takes known ids (B, h·w), not {tuple(known.shape)}: flatten")
        self.known.append(known.detach().clone())
        position = torch.arange(known.shape[1])
        drawn = (7 * position + 3 * known.clamp(min=0).sum(1, keepdim=True) + 11) % 50
        self.drawn.append(torch.where(known >= 0, known, drawn))
        return self.drawn[-1].clone()

    def to_pixels(self, ids):
        if ids.ndim != 3:
            raise ValueError(f"to_pixels takes ids (B, h, w), not {tuple(ids.shape)}: use view")
        wide = ids.repeat_interleave(self.stride, 1).repeat_interleave(self.stride, 2)
        return torch.stack([wide / 50 - 1 + 0.001 * channel for channel in range(3)], 1).float()


INPAINT_CASES = [((5, 2, 14, 8), 4, (3, 5)), ((1, 3, 7, 9), 3, (4, 3)), ((9, 5, 10, 6), 5, (2, 4))]


def inpaint_case(box, stride, grid, seed):
    generator = torch.Generator().manual_seed(seed)
    height, width = (n * stride for n in grid)
    images = torch.rand(2, 3, height, width, generator=generator) * 2 - 1
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[box[1]:box[3], box[0]:box[2]] = True
    mask[0, width - 1] = True                           # plus one pixel in a corner
    return images, mask


def test_inpaint(answers):
    inpaint = answers("inpaint")
    for number, (box, stride, grid) in enumerate(INPAINT_CASES):
        images, mask = inpaint_case(box, stride, grid, 70 + number)
        n = grid[0] * grid[1]
        call = (f"inpaint(images {tuple(images.shape)}, mask of box {box} and pixel "
                f"({images.shape[3] - 1}, 0), stride={stride})")

        def run(pictures):
            tools = Listening(stride)
            result = attempt(call, lambda: inpaint(
                pictures, mask, stride, tools.encode, tools.decode, tools.to_pixels))
            return tools, result

        before = images.clone()
        tools, got = run(images)
        if not torch.equal(images, before):
            fail(call, "the function wrote into images", "unchanged images", "use masked_fill "
                 "or torch.where, or clone first: the picture belongs to the caller")
        for name, heard in (("encode", tools.seen), ("decode", tools.known)):
            if not heard:
                fail(call, f"{name} was not called", f"one call of {name}", "encode makes the "
                     "ids, and decode draws the missing ones")
        pooled = mask.view(grid[0], stride, grid[1], stride)
        touched = pooled.any(3).any(1).flatten()
        known, what = tools.known[-1], f"the known ids given to decode, in {call}"
        unknown = known == -1
        expected = torch.stack([touched] * 2)
        whole = pooled.all(3).all(1).flatten().expand(2, n)
        half = (pooled.float().mean((1, 3)) > 0.5).flatten().expand(2, n)
        guesses = [(torch.zeros(2, n), "no cell is -1, so nothing is drawn: cells that the mask "
                    "touches must be -1 (unknown); 0 is an id like any other"),
                   (~expected, "the mask is inverted: cells under it are unknown, others known"),
                   (torch.ones(2, n), "the decoder gets no known id, so what it draws cannot fit: "
                    "give it the ids outside the mask"),
                   (whole, "a partly covered cell must be drawn too: its id describes pixels that "
                    "are gone"),
                   (half, "a partly covered cell must be drawn too, even for one covered pixel")]
        expect(f"which cells are -1 in {what}", unknown, expected,
               explain(unknown, guesses, "a cell is unknown if any of its pixels is in the mask"))
        seen = tools.seen[-1]
        outside = ~mask.expand_as(images)
        if seen.shape != images.shape or not torch.equal(seen[outside], images[outside]):
            fail(f"the picture given to encode, in {call}", seen, "unchanged known pixels",
                 "hide only the pixels under the mask, not whole cells or known pixels")
        other = torch.where(mask, -images, images)
        if not torch.equal(run(other)[0].known[-1], known):
            fail(f"{call}, twice, with other pixels under the mask",
                 "known ids that differ", "the same known ids", "the encoder saw the pixels "
                 "under the mask: it looks beyond a cell, so hide them before you encode")
        ids = tools.encode(seen).flatten(1)
        expect(what, known, ids.masked_fill(expected, -1), "known ids are the ids that "
               "encode returned, flattened row by row")
        made = tools.to_pixels(tools.drawn[-1].view(2, *grid))
        right = torch.where(mask, made, images)
        cellwise = touched.view(grid).repeat_interleave(stride, 0).repeat_interleave(stride, 1)
        guesses = [(made, "take the pixels outside the mask from the given picture: decoded ids "
                    "are close to it, not equal to it"),
                   (torch.where(cellwise, made, images), "whole cells were replaced; in a touched "
                    "cell, pixels outside the mask stay as they were"),
                   (torch.where(mask, images, made), "the two pictures are exchanged: inside the "
                    "mask, take the pixels from to_pixels")]
        expect(call, got, right, explain(got, guesses, "pixels from to_pixels inside the mask, "
                                         "given pixels outside"))


# check_known_stays

def strong_model() -> ARPG:
    torch.manual_seed(77)
    model = ARPG(ModelConfig(dim=24, content_layers=1, query_layers=1, heads=2, ffn_hidden=32,
                             vocab_size=7, num_classes=3, grid=(3, 4), dropout=0.0))
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.5)
    return model


def test_check_known_stays(answers):
    model = strong_model()

    def right(known, seed):
        steps = min(3, max(1, int((known < 0).sum())))
        return decode(model, [2], [seed], steps=steps, known=known, guidance=1.0)[0]

    def drawn_without(forgotten):
        """A decoder that draws without the `forgotten` known ids and then pastes all known ids."""
        def complete(known, seed):
            drawn = right(known.masked_fill(forgotten(known), -1), seed)
            return torch.where(known >= 0, known, drawn)
        return complete

    def all_but_first(known):
        return (known >= 0).cumsum(0) > 1

    def first(known):
        return (known >= 0) & ~all_but_first(known)

    def last_left(known, seed):
        drawn = right(known, seed)
        drawn[(known < 0).nonzero()[-1]] = -1
        return drawn

    judge("check_known_stays", answers("check_known_stays"), right, [
        ("draws known cells again", lambda known, seed: right(torch.full_like(known, -1), seed)),
        ("pastes known ids onto a picture that was drawn without them",
         drawn_without(lambda known: known >= 0)),
        ("treats id 0 as unknown",
         lambda known, seed: right(known.masked_fill(known == 0, -1), seed)),
        ("leaves the last unknown cell at -1", last_left),
        ("reads only the first known cell", drawn_without(all_but_first)),
        ("does not read the first known cell", drawn_without(first))])
