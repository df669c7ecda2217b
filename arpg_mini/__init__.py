"""arpg_mini: autoregressive image generation in any order, many tokens at a time."""

from .config import ModelConfig, TokenizerConfig
from .model import ARPG
from .tokenizer import VQTokenizer

__all__ = ["ARPG", "ModelConfig", "TokenizerConfig", "VQTokenizer"]
