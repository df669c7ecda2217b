"""Sizes and settings: dataclasses with a comment per field, and the presets made of them."""

from dataclasses import dataclass


@dataclass
class ModelConfig:
    """The sizes of an ARPG model. Letters as in `attention.py`."""

    dim: int = 128                      # D, model width
    content_layers: int = 3             # layers that read the class and the tokens so far
    query_layers: int = 3               # layers that ask for target positions
    heads: int = 4                      # H; the head width K = D / H is a multiple of 4
    vocab_size: int = 64                # V, ids of the tokenizer
    num_classes: int = 10               # C
    grid: tuple[int, int] = (6, 6)      # (h, w), tokens of an image
    ffn_hidden: int | None = None       # None: 2·4·D/3, rounded up to a multiple of 256
    dropout: float = 0.1                # of tokens, attention outputs and FFN outputs, in training
    class_dropout: float = 0.1          # share of samples trained without their class
    rope_base: float = 10000.0          # base of the rotary frequencies

    def __post_init__(self):
        self.grid = tuple(self.grid)
        if self.dim % self.heads or self.head_dim % 4:
            raise ValueError(f"dim {self.dim} with {self.heads} heads: the head width must be "
                             "a whole multiple of 4")
        if self.ffn_hidden is None:
            self.ffn_hidden = -(-int(2 * 4 * self.dim / 3) // 256) * 256

    @property
    def head_dim(self) -> int:
        """K."""
        return self.dim // self.heads


@dataclass
class TokenizerConfig:
    """The sizes of a VQ tokenizer. The defaults are the released VQ-16's."""

    channels: int = 128                     # width of the first level
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # width of each level; each but the last halves the side
    encoder_blocks: int = 2                 # residual blocks a level on the way down
    decoder_blocks: int = 3                 # and on the way up
    latent_channels: int = 256              # features between the convolutions and the codebook
    codebook_size: int = 16384              # V
    code_dim: int = 8                       # width of a codebook row
    commitment: float = 0.25                # weight of the commitment loss
    local_encoder: bool = False             # an id says what is in its own few pixels, and neither where
                                            # in the picture it is nor what is elsewhere

    def __post_init__(self):
        self.multipliers = tuple(self.multipliers)
        if self.channels % 32:
            raise ValueError(f"channels {self.channels}: GroupNorm needs a multiple of 32")
        if not 2 <= self.codebook_size <= 65536:
            raise ValueError(f"codebook_size {self.codebook_size}: ids are kept as uint16, "
                             "so 2 to 65536 rows are possible")

    @property
    def stride(self) -> int:
        """Pixels a side that one id stands for."""
        return 2 ** (len(self.multipliers) - 1)
