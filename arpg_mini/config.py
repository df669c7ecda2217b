"""Sizes and settings: dataclasses with a comment per field."""

from dataclasses import dataclass

# The names that a setting may have.
VIEWS = ("center", "center-flip", "ten-crop")   # of a picture: see `data.ids.crops`
FIXED_ORDERS = ("raster", "column", "spiral", "outward", "checkerboard")  # `orders.named_order`
PARALLEL_ORDERS = ("near", "apart", "local", "halton")      # see `orders.parallel_orders`
ORDERS = ("random", *FIXED_ORDERS, *PARALLEL_ORDERS)
SCHEDULES = ("arccos", "cosine", "constant")    # of step sizes: see `orders.step_sizes`
GUIDANCE_SCHEDULES = ("linear", "constant")     # see `sampling.guide`
WITHIN_STEP = ("block", "causal")               # see `sampling.Settings`
POSITIONS = ("extrapolate", "interpolate", "ntk")   # see `attention.rotary_table`


@dataclass
class ModelConfig:
    """The sizes of an ARPG model. `attention.py` explains the letters."""

    dim: int = 128                      # D, model width
    content_layers: int = 3             # layers that read the class and the known tokens
    query_layers: int = 3               # layers that ask for target positions
    heads: int = 4                      # H; the head width K = D / H is a multiple of 4
    vocab_size: int = 64                # V, ids of the tokenizer
    num_classes: int = 10               # C
    grid: tuple[int, int] = (6, 6)      # (h, w), tokens of an image
    ffn_hidden: int | None = None       # None: 2·4·D/3, rounded up to a multiple of 256
    dropout: float = 0.1                # in training: of tokens, attention and FFN outputs
    class_dropout: float = 0.1          # share of samples trained without their class
    rope_base: float = 10000.0          # base of the rotary frequencies
    control_stride: int = 0             # pixels per side of a token in control maps; 0: none

    def __post_init__(self):
        self.grid = tuple(self.grid)
        for name in ("dim", "content_layers", "query_layers", "heads", "vocab_size", "num_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be 1 or more")
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise ValueError(f"grid {self.grid}: must be two sizes, 1 or more")
        for name in ("dropout", "class_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be 0 or more and below 1")
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
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # of `channels`, a level; all but the last halve
    encoder_blocks: int = 2                 # residual blocks per level on the way down
    decoder_blocks: int = 3                 # and on the way up
    latent_channels: int = 256              # features between the convolutions and the codebook
    codebook_size: int = 16384              # V
    code_dim: int = 8                       # width of a codebook row
    commitment: float = 0.25                # weight of the commitment loss
    local_encoder: bool = False             # an id depends only on a few pixels around its own,
                                            # not on its place or on the rest of the picture

    def __post_init__(self):
        self.multipliers = tuple(self.multipliers)
        if self.channels % 32:
            raise ValueError(f"channels {self.channels}: GroupNorm needs a multiple of 32")
        if not 2 <= self.codebook_size <= 65536:
            raise ValueError(f"codebook_size {self.codebook_size}: ids are kept as uint16, "
                             "so 2 to 65536 rows are possible")

    @property
    def stride(self) -> int:
        """Pixels per side that one id stands for."""
        return 2 ** (len(self.multipliers) - 1)


@dataclass
class TrainConfig:
    """How to train. The recipe is the paper's; the default sizes suit small pictures."""

    steps: int = 3000                       # optimizer steps of ARPG
    batch_size: int = 64                    # images per step, over all processes together
    micro_batch: int = 64                   # most images that a process handles at a time
    lr: float = 2e-3                        # peak learning rate
    final_lr: float = 1e-5                  # where the cosine ends
    warmup: float = 0.25                    # share of the run in which the rate rises to its peak
    weight_decay: float = 0.05              # on tensors of two or more dimensions
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0                  # largest norm of the whole gradient
    ema: float = 0.9999                     # decay of the running average of the weights
    loss_rows: int = 8192                   # rows of logits held at once
    tokenizer_steps: int = 400
    tokenizer_batch_size: int = 32
    tokenizer_lr: float = 2e-3
    tokenizer_patience: int = 20            # unused for so many batches, a codebook row is moved
