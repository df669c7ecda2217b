"""Pictures and ids in, pictures out: data sets, folders, files of ids, PNG, GIF and `.npz`."""

from .builtin import shapes

__all__ = ["shapes"]
