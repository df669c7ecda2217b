"""Chapter 7, without retraining: fill in the four functions.

    python -m pytest tutorial/exercises/test_ch07.py
"""

from collections.abc import Callable

import torch  # noqa: F401 (yours to use)
from torch import Tensor


def cells_of_box(box: tuple[int, int, int, int], stride: int, grid: tuple[int, int]) -> Tensor:
    """Which cells of a token grid a box of pixels touches.

    box: (x0, y0, x1, y1) whole pixels; x counts columns from the left, y rows from the top. Pixel
    (x, y) is inside if x0 <= x < x1 and y0 <= y < y1. The box is not empty and lies in the picture.
    stride: pixels a side of a cell. grid: (h, w) cells.
    Returns (h, w) bool, True for every cell of which at least one pixel is inside.

    Example: stride 4, grid (2, 3), so a picture 12 pixels wide and 8 high. The box (3, 4, 5, 6)
    holds pixels of columns 3 and 4 and of rows 4 and 5. Column 3 is in cell column 0, column 4 in
    cell column 1; both rows are in cell row 1. So the answer is
    [[False, False, False], [True, True, False]].
    Minutes: 15
    """
    raise NotImplementedError("cells_of_box: the (h, w) bool mask of the cells a box touches")


def place(ids: Tensor, grid: tuple[int, int], at: tuple[int, int]) -> Tensor:
    """Put a picture's ids into a larger grid, for outpainting.

    ids: (h, w) int64. grid: (H, W), the larger one. at: (row, column) of the larger grid where the
    top left id of the picture goes.
    Returns (H, W) int64: the picture's ids where it lies, -1 (unknown) everywhere else.
    ValueError if the picture does not lie wholly inside the larger grid.

    Example: place([[7, 0]], grid=(2, 4), at=(1, 2)) -> [[-1, -1, -1, -1], [-1, -1, 7, 0]].
    Minutes: 10
    """
    raise NotImplementedError("place: a grid of -1 with the picture's ids in it")


def inpaint(images: Tensor, mask: Tensor, stride: int, encode: Callable, decode: Callable,
            to_pixels: Callable) -> Tensor:
    """Fill what a mask covers so that it fits what it leaves.

    images: (B, 3, height, width) in [-1, 1]. mask: (height, width) bool, True where to fill, the
    same for all images. stride: pixels a side of a cell; with h = height / stride and
    w = width / stride the three given functions are
        encode(images) -> (B, h, w) ids; it looks at the whole picture for every id
        decode(known) -> (B, h·w) raster ids; known: (B, h·w) ids, -1 where one is to be drawn;
            it returns the known ids as they were
        to_pixels(ids) -> (B, 3, height, width); ids: (B, h, w)
    Returns (B, 3, height, width): every pixel outside the mask exactly as it was; inside, what was
    drawn. What the mask hid must not influence anything: put 0 there before you encode (the mean of
    the other pixels will do as well). A cell is to be drawn if the mask covers any of its pixels.
    Do not write into `images`.

    Example: stride 2, a picture 4 pixels wide and 2 high, so two cells; the mask covers the last
    pixel column alone. Encode the picture with that column at 0; say the ids are [[5, 3]]. Decode
    [[5, -1]]; say it returns [[5, 8]]. Turn [[[5, 8]]] into pixels, and return the given picture
    with its last column replaced by theirs. The third column, though its cell was drawn anew, stays
    as it was.
    Minutes: 45
    """
    raise NotImplementedError("inpaint: hide, encode, forget the touched cells, decode, composite")


def check_known_stays(complete: Callable) -> None:
    """A property: known ids stay, unknown ones are drawn, and those depend on the known ones.

    complete(known, seed) -> (12,) int64. known: (12,) int64, ids 0..6 of a 3×4 grid in raster
    order, -1 where unknown; at least one is unknown. seed: an int, 0 or more. The model's weights
    are large and its class is fixed; what is drawn changes with the seed and with the known ids.
    Assert, for many known grids,
      - known ids come out as they were, whichever ids they are;
      - what comes out where nothing was known is an id, 0..6;
      - what is drawn depends on each known id. One changed id need not show in one draw (the same
        noise may pick the same ids), but it does in some of a few dozen.
    No two runs of your check need try the same grids; keep it under about 300 calls.

    Example: known = [-1, 4, -1, 0, -1, …, -1] (positions 1 and 3 are known). If complete(known,
    seed) has other ids than 4 and 0 there, or -1 anywhere, raise AssertionError. And if for 30
    seeds it returns, at the ten unknown positions, just what it returns for
    [-1, 2, -1, 0, -1, …, -1], raise it too: the id at 1 is not read. The same for position 3.
    Minutes: 30
    """
    raise NotImplementedError("check_known_stays: assert what holds of known and of drawn ids")
