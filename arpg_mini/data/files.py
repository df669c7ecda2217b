"""Writing files so that a crash never leaves half of one.

The one idea: a file is written under another name, flushed to the disk, and only then renamed.
"""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from .. import UserError


def write_whole(path: Path, write) -> None:
    """Let `write(file)` fill a new file, then rename it to `path` in one step."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            try:
                write(file)
            except RuntimeError:    # torch hides why the disk refused; one more write tells it
                file.write(bytes(2**20))
                file.flush()
                raise
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: can't be written ({reason})") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


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


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            sha256.update(block)
    return sha256.hexdigest()
