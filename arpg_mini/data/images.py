"""Pictures out: grids, PNG, GIF, and the `.npz` files that evaluators read and write."""

import math
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from .. import UserError
from .files import npz_array, npz_entry, write_whole


def to_uint8(images: Tensor) -> np.ndarray:
    """(n, 3, height, width) in [-1, 1] -> (n, height, width, 3) uint8."""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def grid(images: np.ndarray, columns: int, zoom: int = 1, gap: int = 2) -> Image.Image:
    """(n, height, width, 3) uint8 -> one picture, row by row, with gaps of `gap` white pixels."""
    n, height, width, _ = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * (height * zoom + gap) - gap, columns * (width * zoom + gap) - gap, 3),
                     255, np.uint8)
    for i, image in enumerate(images.repeat(zoom, axis=1).repeat(zoom, axis=2)):
        y, x = (i // columns) * (height * zoom + gap), (i % columns) * (width * zoom + gap)
        canvas[y:y + height * zoom, x:x + width * zoom] = image
    return Image.fromarray(canvas)


def captioned(rows: Sequence[Image.Image], captions: Sequence[str],
              margin: int = 76) -> Image.Image:
    """Pictures below each other, each with a line of text on its left."""
    size = margin + max(r.width for r in rows), sum(r.height + 4 for r in rows)
    canvas = Image.new("RGB", size, "white")
    top = 0
    for row, caption in zip(rows, captions):
        canvas.paste(row, (margin, top))
        ImageDraw.Draw(canvas).text((4, top + row.height // 2 - 6), caption, fill="black")
        top += row.height + 4
    return canvas


def save_png(path: Path, image: Image.Image) -> None:
    write_whole(path, lambda file: image.save(file, "PNG"))


def save_gif(path: Path, frames: Sequence[Image.Image], milliseconds: int = 120) -> None:
    """An endless animation. The last frame is shown ten times as long as the others."""
    durations = [milliseconds] * (len(frames) - 1) + [10 * milliseconds]
    write_whole(path, lambda file: frames[0].save(
        file, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0))


def cover_unknown(images: np.ndarray, known: np.ndarray, grey: int = 128) -> np.ndarray:
    """Pictures (n, height, width, 3) with the cells of unknown tokens, (n, h, w) False, in grey."""
    cell_height = images.shape[1] // known.shape[1]
    cell_width = images.shape[2] // known.shape[2]
    pixels = known.repeat(cell_height, axis=1).repeat(cell_width, axis=2)      # (n, height, width)
    return np.where(pixels[..., None], images, np.uint8(grey))


def save_npz(path: Path, batches: Iterable[np.ndarray], shape: tuple[int, int, int, int],
             labels: np.ndarray, seed: int = 0) -> None:
    """Write the ADM evaluator's file: `arr_0` uint8 (n, height, width, 3), `arr_1` int64 (n,), and
    `seed`, the first picture's; one batch at a time. ValueError if their number is wrong."""
    def header(file, shape, dtype):
        described = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False,
                     "shape": shape}
        np.lib.format.write_array_header_1_0(file, described)

    def write(file):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as entry:
                header(entry, shape, np.uint8)
                count = 0
                for batch in batches:
                    if batch.shape[1:] != shape[1:] or batch.dtype != np.uint8:
                        raise ValueError(f"a batch of {batch.dtype} {batch.shape} for {shape}")
                    entry.write(np.ascontiguousarray(batch).data)
                    count += len(batch)
                if count != shape[0]:
                    raise ValueError(f"{count} images came, {shape[0]} were expected")
            with archive.open("arr_1.npy", "w") as entry:
                header(entry, labels.shape, np.int64)
                entry.write(np.ascontiguousarray(labels, np.int64).data)
            with archive.open("seed.npy", "w") as entry:
                header(entry, (), np.int64)
                entry.write(np.int64(seed).tobytes())

    write_whole(path, write)


@contextmanager
def open_pictures(path: Path) -> Iterator[tuple]:
    """An ADM-style file's `arr_0`, uint8 (n, height, width, 3): its open entry and its shape."""
    with npz_entry(path, "arr_0") as (entry, shape, dtype):
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not all(shape):
            raise UserError(f"{path}: its arr_0 is {dtype} {shape}, not uint8 (n, height, width, "
                            "3)")
        yield entry, shape


def pictures(path: Path, batch: int = 50) -> Iterator[np.ndarray]:
    """The pictures of a file, (batch, height, width, 3) at a time: never all in memory."""
    with open_pictures(path) as (entry, (n, *size)):
        for start in range(0, n, batch):
            wanted = min(batch, n - start) * math.prod(size)
            data = entry.read(wanted)
            if len(data) < wanted:
                raise UserError(f"{path}: cut off after {start} of {n} pictures")
            yield np.frombuffer(data, np.uint8).reshape(-1, *size)


def array(path: Path, name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """An array of numbers out of an .npz; UserError if it is not of that shape and kind."""
    found = npz_array(path, name)
    if found.shape != shape or found.dtype.kind not in kind or not np.isfinite(found).all():
        raise UserError(f"{path}: its {name} is {found.dtype} {found.shape}; it must be {shape} "
                        "finite numbers")
    return found
