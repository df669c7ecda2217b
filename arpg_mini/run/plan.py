"""What a run needs, before it starts: parameters, FLOPs, memory, hours.

The one idea: everything follows from the sizes. A matrix product of (r, a) by (a, b) takes 2·r·a·b
FLOPs, and its gradient takes twice that. Every weight needs 4 bytes, and 4 more for its gradient, 8
for AdamW's two moments and 4 for its running average. Autograd keeps what the lines of
`Block.compute` need for their gradients. Tests compare the formulas with PyTorch's own counts.
"""

from collections.abc import Callable, Iterator

from .. import UserError
from ..config import ModelConfig, TrainConfig


def parameters(c: ModelConfig) -> int:
    """The number of parameters."""
    ffn = 3 * c.dim * c.ffn_hidden
    content = 4 * c.dim**2 + ffn + 2 * c.dim            # q, k, v, out; w1, w3, w2; two gains
    query = 2 * c.dim**2 + ffn + 2 * c.dim              # q, out
    ends = (2 * c.vocab_size + c.num_classes + 3) * c.dim           # embedding and head
    shared = 2 * c.dim**2 + 2 * c.dim                   # keys and values; the last two gains
    return c.content_layers * content + c.query_layers * query + ends + shared


def forward_flops(c: ModelConfig, tokens: int) -> int:
    """FLOPs of one image's forward pass in training. Only matrix products count. Attention counts
    as if nothing were masked, as PyTorch counts it; a causal kernel does half of that."""
    ffn = 3 * c.dim * c.ffn_hidden
    content, query = 4 * c.dim**2 + ffn, 2 * c.dim**2 + ffn
    a_token = (c.content_layers * content + c.query_layers * query + 2 * c.dim**2
               + c.vocab_size * c.dim)
    attention = (c.content_layers + c.query_layers) * 2 * c.dim * tokens
    first_query = c.dim**2 * tokens                     # [MASK] is projected once per batch
    return 2 * (tokens * (a_token + attention) - first_query)


def training_flops(c: ModelConfig, tokens: int, recompute: bool = False) -> int:
    """FLOPs of one image's forward and backward pass: three times those of the forward pass, or
    four times in the blocks if they are recomputed."""
    forward = forward_flops(c, tokens)
    outside = 2 * tokens * (2 * c.dim**2 + c.vocab_size * c.dim)
    return 3 * forward + (forward - outside if recompute else 0)


def decode_costs(c: ModelConfig, sizes: list[int], images: int, guided: bool = True,
                 known: int = 0, width: int = 4) -> list[tuple[int, int]]:
    """FLOPs of every step of a decode, and the bytes that it must read.

    sizes: tokens decoded by each step, after `known` given ones. Guidance doubles everything but
    the product of the head. width: bytes per number. A step reads the weights of the content pass
    once each time it encodes, the weights of the query pass once, and each pair of keys and values
    once, even if several layers share it.
    """
    ffn, costs, past = 3 * c.dim * c.ffn_hidden, [], 0
    content = c.content_layers * (4 * c.dim**2 + ffn) + 2 * c.dim**2        # number of weights
    query, head = c.query_layers * (2 * c.dim**2 + ffn), c.vocab_size * c.dim
    rows = images * (1 + guided)
    for before, size in zip([0, *sizes], sizes):
        flops = numbers = 0
        for s in [before] if before else [1, known] if known else [1]:      # 1: the class
            past += s
            flops += 2 * rows * s * (content + c.content_layers * 2 * c.dim * past)
            numbers += content + c.content_layers * 2 * rows * past * c.dim
        flops += 2 * rows * size * (query + c.query_layers * 2 * c.dim * past)
        flops += 2 * (images * size * head - c.dim**2 * (rows * size - 1))  # one [MASK] projected
        numbers += query + head + 2 * rows * past * c.dim
        costs.append((flops, width * numbers))
    return costs


def raster_costs(c: ModelConfig, tokens: int, rows: int, cached: bool = True,
                 width: int = 4) -> list[tuple[int, int]]:
    """The same for `measure.raster.Raster`, step by step."""
    layers, head = c.content_layers + c.query_layers, c.vocab_size * c.dim
    blocks = layers * (4 * c.dim**2 + 3 * c.dim * c.ffn_hidden)
    costs = []
    for past in range(1, tokens + 1):
        s, kept = (1, 2 * rows * past * c.dim * layers) if cached else (past, 0)
        flops = 2 * rows * (s * (blocks + layers * 2 * c.dim * past) + head)
        costs.append((flops, width * (blocks + head + kept)))
    return costs


def cache_bytes(c: ModelConfig, slots: int, rows: int, raster: bool = False, width: int = 4) -> int:
    """Bytes of keys and values. ARPG keeps one pair per content layer and one for all query layers.
    A raster-order model keeps one pair per layer."""
    pairs = c.content_layers + (c.query_layers if raster else 1)
    return pairs * 2 * rows * slots * c.dim * width


def kept_bytes(c: ModelConfig, tokens: int, images: int, half: bool = False,
               recompute: bool = False, mask_bytes: int = 1) -> int:
    """Bytes of activations kept for the backward pass of `images` pictures of `tokens` ids each.

    The residual stream and the norms are float32. With `half` (autocast), the inputs and outputs of
    matrix products are bfloat16. `mask_bytes`: bytes per feature of a dropout mask, 1 on CUDA and 4
    on a CPU. Logits are never kept, so they do not count.
    """
    wide, narrow = 4 * c.dim, (2 if half else 4) * c.dim
    mask = mask_bytes * c.dim if c.dropout else 0
    hidden = (2 if half else 4) * c.ffn_hidden
    norm = 2 * wide + 4 + (narrow if half else wide)    # x, x / rms(x), rms(x); times the gain
    ffn = norm + 4 * hidden + mask                      # w1 x, w3 x, silu(w1 x), their product
    scores = 4 * c.heads                                # of attention: one number per head
    content = norm + 6 * narrow + scores + mask + ffn   # q, k, v; rotated q, k; the output
    query = norm + 2 * narrow + scores + mask + ffn     # rotated q; the attention's output
    if recompute:                                       # the inputs, and one block at a time
        blocks = (c.content_layers + c.query_layers) * wide + max(content, query)
    else:
        blocks = c.content_layers * content + c.query_layers * query
    shared = norm + 3 * narrow                          # keys, values; rotated keys
    ends = mask + 2 * wide + 4 + narrow + 8 + 8 * c.head_dim  # last norm, gradient; ids, rotations
    first_query = norm - 4                              # of one vector, not one per token
    return images * tokens * (blocks + shared + ends - first_query)


def memory(c: ModelConfig, t: TrainConfig, tokens: int, images: int, processes: int = 1,
           half: bool = False, shard: bool = False, recompute: bool = False) -> dict[str, int]:
    """Bytes by part, in each process, of training with `images` at a time."""
    count, spread = parameters(c), processes if shard else 1
    ends = (2 * c.vocab_size + c.num_classes + 3) * c.dim
    layers = c.content_layers + c.query_layers
    block = 4 * c.dim**2 + 3 * c.dim * c.ffn_hidden
    if shard:                                           # what is gathered at one time
        copies = (2 if half else 4) * (ends + 2 * c.dim**2 + 2 * block)
    else:                                               # autocast's copies of weights
        copies = 2 * (count - ends - (2 * layers + 2) * c.dim) if half else 0
    rows = min(t.loss_rows, images * tokens)
    pieces = -(-t.batch_size // (images * processes))
    return {"weights": 4 * count // spread, "gradients": 4 * count // spread,
            "gradients of several pieces, whole": 4 * count if shard and pieces > 1 else 0,
            "optimizer": 8 * count // spread, "running average": 4 * count // spread,
            "weights to compute with": copies,
            "averaged weights, whole, in the first": 4 * count if shard else 0,
            "activations": kept_bytes(c, tokens, images, half, recompute),
            "logits": 3 * 4 * rows * c.vocab_size + 4 * c.vocab_size * c.dim}


def describe(run: dict, options) -> str:
    """All of it in words, for a run as `describe.describe_run` gives it."""
    c, t = ModelConfig(**run["model"]), TrainConfig(**run["train"])
    tokens, images = c.grid[0] * c.grid[1], t.batch_size // options.gpus
    images = min(images, options.micro_batch or t.micro_batch)
    half = options.precision != "float32"
    how = dict(processes=options.gpus, half=half, shard=options.shard, recompute=options.recompute)
    parts, flops = memory(c, t, tokens, images, **how), training_flops(c, tokens, options.recompute)
    rate = options.device_tflops * 1e12 * options.utilisation * options.gpus / flops
    lines = [
        f"{run['preset']}: {parameters(c) / 1e6:,.1f} M parameters, {c.content_layers} content and "
        f"{c.query_layers} query layers {c.dim} wide; {tokens} tokens of {c.vocab_size:,} ids",
        f"an image: {forward_flops(c, tokens) / 1e9:,.1f} GFLOP forward, {flops / 1e9:,.1f} in "
        f"training; the run, {t.steps:,} steps of {t.batch_size:,}: "
        f"{flops * t.steps * t.batch_size:.3g} FLOP",
        f"memory of each of {options.gpus} process{'es' * (options.gpus > 1)}, {images} images at "
        f"a time in {'bfloat16' if half else 'float32'}" + ", sharded" * options.shard
        + ", recomputing" * options.recompute + ":"]
    lines += [f"{bytes / 1e9:10.2f} GB  {name}" for name, bytes in parts.items() if bytes]
    lines += [f"{sum(parts.values()) / 1e9:10.2f} GB  at most in total; CUDA takes about 1 GB more"]
    fits = [f"{card} GB: {most_images(c, t, tokens, card, how) or 'none'}" for card in (24, 40, 80)]
    lines += [f"largest --micro-batch, by card: {', '.join(fits)}",
              f"speed, assuming {options.utilisation:.0%} of {options.device_tflops:g} TFLOP/s per "
              f"device: {rate:,.0f} images/s, the run takes "
              f"{t.steps * t.batch_size / rate / 3600:,.1f} hours"]
    return "\n".join(lines)


def most_images(c: ModelConfig, t: TrainConfig, tokens: int, card: float, how: dict) -> int:
    """The most images at a time that fit a card of so many GB, with a tenth and 1 GB kept free."""
    return max((n for n in range(1, 1025)
                if sum(memory(c, t, tokens, n, **how).values()) < (0.9 * card - 1) * 1e9),
               default=0)


def fitting(c: ModelConfig, t: TrainConfig, device, processes: int, **how) -> str:
    """What the plan allows on this GPU."""
    import torch  # a plan in words needs none

    card = torch.cuda.get_device_properties(device).total_memory / 1e9
    most = most_images(c, t, c.grid[0] * c.grid[1], card, how | {"processes": processes})
    return (f"by --plan its {card:.0f} GB hold {most} at a time" if most else
            f"by --plan its {card:.0f} GB hold none; try --recompute, --shard or a smaller model")


def in_memory(steps: Iterator, flag: str, fits: Callable[[], str]) -> Iterator:
    """Pass on what the steps yield. If a GPU has too little memory, UserError names the flag that
    needs less; `fits` says what would fit."""
    import torch

    try:
        yield from steps
    except torch.OutOfMemoryError as error:
        raise UserError(f"{flag}: more than the GPU's memory holds ({str(error).split('. ')[0]}); "
                        f"{fits()}") from None
