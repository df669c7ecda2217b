"""Writing files so that a crash never leaves half of one; reading files that may hold anything.

The one idea: a file is written under another name, flushed to the disk, and only then renamed. And
an array is read only after its header has said how large it is.
"""

import contextlib
import errno
import hashlib
import math
import os
import shutil
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .. import UserError


def write_whole(path: Path, write) -> None:
    """Let `write(file)` fill a new file, then rename it to `path` in one step."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: can't be written ({refusal(part, error)})") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def refusal(part: Path, error: Exception) -> object:
    """Why a file could not be written. torch hides what the system said: one more write tells it.
    """
    try:
        with open(part, "ab") as file:
            file.write(bytes(2**20))
    except OSError as reason:
        error = reason
    return getattr(error, "strerror", None) or error


def also_as(path: Path, other: Path) -> None:
    """Give the file a second name, by a hard link or, where there are none, by a copy."""
    part = other.with_name(f"{other.name}.{os.getpid()}.part")
    try:
        try:
            os.link(path, part)
        except OSError:
            shutil.copyfile(path, part)
        os.replace(part, other)
    except OSError as error:
        raise UserError(f"{other}: can't be written ({error})") from error
    finally:
        part.unlink(missing_ok=True)    # renaming a link over a link of the same file keeps both


def sweep(folder: Path) -> None:
    """Remove the unfinished files of writers that were killed."""
    for part in folder.glob("*.part"):
        part.unlink(missing_ok=True)


# numpy parses headers by `ast`. In Python 3.11, threads that do so at the same time may fail.
HEADERS = threading.Lock()


def regular(path: Path) -> Path:
    """The path of a file that exists and ends. OSError otherwise: reading a pipe may never end."""
    if not os.path.isfile(path):
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    return path


def npy(path: Path) -> np.ndarray:
    """The array in a .npy file, mapped into memory. OSError or ValueError if it holds none, or less
    than its header says."""
    try:
        with HEADERS:
            return np.load(regular(path), mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:                  # numpy's parser of headers may raise anything
        raise ValueError(str(error) or type(error).__name__) from None


@contextlib.contextmanager
def npz_entry(path: Path, name: str) -> Iterator[tuple]:
    """An array of an .npz file: its open entry, shape and dtype, before a number of it is read.
    UserError says why there is none. While it is open, ValueError says that it is damaged."""
    try:
        archive = zipfile.ZipFile(regular(path))
        entry = archive.open(f"{name}.npy")
        version = np.lib.format.read_magic(entry)
        shape, by_columns, dtype = (np.lib.format.read_array_header_1_0 if version == (1, 0)
                                    else np.lib.format.read_array_header_2_0)(entry)
        if by_columns or dtype.hasobject:
            raise ValueError(f"stored by columns or as Python objects: {dtype} {shape}")
    except Exception as error:                  # zipfile and numpy may raise anything
        raise UserError(f"{path}: holds no {name} ({type(error).__name__}: {error})") from None
    with archive, entry:
        try:
            yield entry, shape, dtype
        except (EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path}: its {name} is damaged ({error})") from None


def npz_array(path: Path, name: str, most: int = 2**26) -> np.ndarray:
    """An array of an .npz file of at most so many bytes. UserError says why there is none."""
    with npz_entry(path, name) as (entry, shape, dtype):
        size = math.prod(shape) * dtype.itemsize
        data = entry.read(size) if size <= most else b""
        if len(data) < size:
            raise UserError(f"{path}: its {name}, {dtype} {shape}, is cut off or too large")
        return np.frombuffer(data, dtype).reshape(shape).copy()


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    sha256 = hashlib.sha256()
    with open(regular(path), "rb") as file:
        while block := file.read(1 << 22):
            sha256.update(block)
    return sha256.hexdigest()
