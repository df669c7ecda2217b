"""Chapter 7, without retraining: fill in the four functions.

    python -m pytest tutorial/exercises/test_ch07.py
"""

from collections.abc import Callable

import torch  # noqa: F401 (yours to use)
from torch import Tensor


def cells_of_box(box: tuple[int, int, int, int], stride: int, grid: tuple[int, int]) -> Tensor:
    """Find the cells of a token grid that a box of pixels touches.

    box: (x0, y0, x1, y1) whole pixels. x counts columns from the left, y counts rows from the top.
    Pixel (x, y) is inside if x0 <= x < x1 and y0 <= y < y1. The box is not empty and lies in the
    picture.
    stride: pixels per side of a cell. grid: (h, w) cells.
    Returns (h, w) bool: True for every cell that has at least one pixel inside the box.

    Example: stride 4, grid (2, 3), so the picture is 12 pixels wide and 8 high. The box
    (3, 4, 5, 6) holds pixel columns 3 and 4 and pixel rows 4 and 5. Column 3 is in cell column 0,
    column 4 is in cell column 1, and both rows are in cell row 1. So the answer is
    [[False, False, False], [True, True, False]].
    Minutes: 15
    """
    raise NotImplementedError("cells_of_box: the (h, w) bool mask of the cells that a box touches")


def place(ids: Tensor, grid: tuple[int, int], at: tuple[int, int]) -> Tensor:
    """Put a picture's ids into a larger grid, for outpainting.

    ids: (h, w) int64. grid: (H, W), the larger one. at: (row, column) in the larger grid for the
    top left id of the picture.
    Returns (H, W) int64: the picture's ids at their places, -1 (unknown) everywhere else.
    Raises ValueError if the picture does not lie wholly inside the larger grid.

    Example: place([[7, 0]], grid=(2, 4), at=(1, 2)) -> [[-1, -1, -1, -1], [-1, -1, 7, 0]].
    Minutes: 10
    """
    raise NotImplementedError("place: a grid of -1 that holds the picture's ids")


def inpaint(images: Tensor, mask: Tensor, stride: int, encode: Callable, decode: Callable,
            to_pixels: Callable) -> Tensor:
    """Fill the pixels under a mask so that they fit the pixels around it.

    images: (B, 3, height, width) in [-1, 1]. mask: (height, width) bool, True at the pixels to
    fill; all images have the same mask. stride: pixels per side of a cell. With h = height / stride
    and w = width / stride, the three given functions are
        encode(images) -> (B, h, w) ids; every id depends on the whole picture
        decode(known) -> (B, h·w) raster ids; known: (B, h·w) ids, -1 for each id to draw;
            it returns the known ids unchanged
        to_pixels(ids) -> (B, 3, height, width); ids: (B, h, w)
    Returns (B, 3, height, width): outside the mask every pixel exactly as it was, inside the mask
    the drawn pixels. The hidden pixels must not influence anything: set them to 0 before you encode
    (the mean of the other pixels also works). A cell must be drawn if the mask covers any of its
    pixels. Do not write into `images`.

    Example: stride 2, a picture 4 pixels wide and 2 high, so two cells. The mask covers only the
    last pixel column. Encode the picture with that column at 0. Say the ids are [[5, 3]]. Decode
    [[5, -1]]. Say the result is [[5, 8]]. Turn [[[5, 8]]] into pixels. Return the given picture
    with its last column replaced by the last column of these pixels. The third column stays as it
    was, although its cell was drawn again.
    Minutes: 45
    """
    raise NotImplementedError("inpaint: hide, encode, forget the touched cells, decode, composite")


def check_known_stays(complete: Callable) -> None:
    """A property: known ids stay, unknown ids are drawn, and drawn ids depend on known ids.

    complete(known, seed) -> (12,) int64. known: (12,) int64, ids 0..6 of a 3×4 grid in raster
    order, -1 where unknown; at least one is unknown. seed: an int, 0 or more. The model's weights
    are large and its class is fixed. The drawn ids change with the seed and with the known ids.
    Assert, for many known grids:
      - The known ids are returned unchanged, for all values 0..6.
      - At every unknown position the result is an id, 0..6.
      - The drawn ids depend on each known id. If you change one known id, a single draw may stay
        the same (the same noise may pick the same ids), but some of a few dozen draws change.
    Your check may try other grids in every run. Keep it under about 300 calls.

    Example: known = [-1, 4, -1, 0, -1, …, -1] (positions 1 and 3 are known). If complete(known,
    seed) has ids other than 4 and 0 there, or -1 anywhere, raise AssertionError. Also call
    complete for [-1, 2, -1, 0, -1, …, -1], with 30 seeds. If all 30 results are the same as before
    at the ten unknown positions, raise it too: the id at 1 is not read. The same holds for
    position 3.
    Minutes: 30
    """
    raise NotImplementedError("check_known_stays: assert what must hold for known and drawn ids")
