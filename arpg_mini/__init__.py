"""arpg_mini: autoregressive image generation in any order, many tokens at a time."""

import os
from importlib import import_module

# Threads that wait for each other soon sleep, where OpenMP would have them spin for long: small
# products would be many times slower while another program wants the cores. Read by torch.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_HOMES = {"ARPG": "model", "ModelConfig": "config", "TokenizerConfig": "config",
          "VQTokenizer": "tokenizer"}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    """Import a public name from its module on first use, so that `--help` need not wait for
    torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'arpg_mini' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
