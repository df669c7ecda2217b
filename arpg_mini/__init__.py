"""arpg_mini: autoregressive image generation in any order, many tokens at a time."""

import os
from importlib import import_module

# Threads that wait for each other sleep, where OpenMP would have them spin: a model of small
# products is many times slower if another program wants the same cores. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_HOMES = {"ARPG": "model", "ModelConfig": "config", "TokenizerConfig": "config",
          "VQTokenizer": "tokenizer"}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    """Import a public name from its module on first use, so that `--help` need not wait for
    torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'arpg_mini' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
