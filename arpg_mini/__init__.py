"""arpg_mini: autoregressive image generation in any order, many tokens at a time."""

import os
from importlib import import_module

# Threads that wait for each other spin briefly and then sleep. OpenMP's default is to spin for
# long, which makes small products many times slower while another program uses the cores. Torch
# reads this when it is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_HOMES = {"ARPG": "model", "ModelConfig": "config", "TokenizerConfig": "config",
          "VQTokenizer": "tokenizer", "decode": "decoding", "decode_exact": "exact"}
__all__ = sorted([*_HOMES, "UserError"])


class UserError(Exception):
    """A user's mistake, in one line: the flag or file, the value, and what would be right."""


def __getattr__(name: str):
    """Import a public name from its module on first use, so that `--help` does not import
    torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'arpg_mini' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
