"""What a run takes before it is started: parameters, FLOPs, memory, hours.

The one idea: all of it follows from the sizes. A matrix product of (r, a) by (a, b) is 2·r·a·b
FLOPs, its gradient twice that; every weight costs 4 bytes itself, 4 for its gradient, 8 for AdamW's
two moments, 4 for its running average; and autograd keeps what the lines of `Block.compute` need to
be differentiated, which can be counted off. Tests hold the formulas to PyTorch's own counts.

    python train_mini.py --preset arpg-xxl --plan --gpus 8 --shard --recompute
"""

from .config import ModelConfig, TrainConfig


def parameters(c: ModelConfig) -> int:
    """Numbers that are learned."""
    ffn = 3 * c.dim * c.ffn_hidden
    content = 4 * c.dim**2 + ffn + 2 * c.dim            # q, k, v, out; w1, w3, w2; two gains
    query = 2 * c.dim**2 + ffn + 2 * c.dim              # q, out
    ends = (2 * c.vocab_size + c.num_classes + 3) * c.dim           # embedding and head
    shared = 2 * c.dim**2 + 2 * c.dim                   # keys and values; the last two gains
    return c.content_layers * content + c.query_layers * query + ends + shared


def forward_flops(c: ModelConfig, tokens: int) -> int:
    """FLOPs of one image's forward pass in training: products of matrices only, attention as if
    nothing were masked (as PyTorch counts it; a causal kernel does half)."""
    ffn = 3 * c.dim * c.ffn_hidden
    content, query = 4 * c.dim**2 + ffn, 2 * c.dim**2 + ffn
    a_token = (c.content_layers * content + c.query_layers * query + 2 * c.dim**2
               + c.vocab_size * c.dim)
    attention = (c.content_layers + c.query_layers) * 2 * c.dim * tokens
    first_query = c.dim**2 * tokens                     # a batch's [MASK]s are projected as one
    return 2 * (tokens * (a_token + attention) - first_query)


def training_flops(c: ModelConfig, tokens: int, recompute: bool = False) -> int:
    """FLOPs of one image's forward and backward pass: three times the forward ones, four of the
    blocks' if they are recomputed."""
    forward = forward_flops(c, tokens)
    outside = 2 * tokens * (2 * c.dim**2 + c.vocab_size * c.dim)
    return 3 * forward + (forward - outside if recompute else 0)


def decode_costs(c: ModelConfig, sizes: list[int], images: int, guided: bool = True,
                 known: int = 0, width: int = 4) -> list[tuple[int, int]]:
    """FLOPs, and bytes that must be read, of every step of a decode.

    sizes: tokens decoded by each step, behind `known` ones that are given. Guidance doubles all but
    the head's product. width: bytes of a number. Read are all weights a step multiplies by, once
    for each time it encodes and once for its questions, and the keys and values it attends to, once
    however many layers share them.
    """
    ffn, costs, past = 3 * c.dim * c.ffn_hidden, [], 0
    content = c.content_layers * (4 * c.dim**2 + ffn) + 2 * c.dim**2        # numbers of weights
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
    """The same of `raster.Raster`, step by step."""
    layers, head = c.content_layers + c.query_layers, c.vocab_size * c.dim
    blocks = layers * (4 * c.dim**2 + 3 * c.dim * c.ffn_hidden)
    costs = []
    for past in range(1, tokens + 1):
        s, kept = (1, 2 * rows * past * c.dim * layers) if cached else (past, 0)
        flops = 2 * rows * (s * (blocks + layers * 2 * c.dim * past) + head)
        costs.append((flops, width * (blocks + head + kept)))
    return costs


def cache_bytes(c: ModelConfig, slots: int, rows: int, raster: bool = False, width: int = 4) -> int:
    """Of keys and values: ARPG keeps a pair for each content layer and one for all query layers,
    a raster-order model of as many layers one for each."""
    pairs = c.content_layers + (c.query_layers if raster else 1)
    return pairs * 2 * rows * slots * c.dim * width


def kept_bytes(c: ModelConfig, tokens: int, images: int, half: bool = False,
               recompute: bool = False, mask_bytes: int = 1) -> int:
    """Bytes of activations that wait for the backward pass of `images` of `tokens` ids each.

    Residual stream and norms are float32; with `half` (autocast) what enters and leaves a matrix
    product is bfloat16. `mask_bytes` of a dropped feature: 1 on CUDA, 4 on a CPU. The logits,
    which are never kept, are not among them.
    """
    wide, narrow = 4 * c.dim, (2 if half else 4) * c.dim
    mask = mask_bytes * c.dim if c.dropout else 0
    hidden = (2 if half else 4) * c.ffn_hidden
    norm = 2 * wide + 4 + (narrow if half else wide)    # x, x / rms(x), rms(x); times the gain
    ffn = norm + 4 * hidden + mask                      # w1 x, w3 x, silu(w1 x), their product
    scores = 4 * c.heads                                # of attention: one number a head
    content = norm + 6 * narrow + scores + mask + ffn   # q, k, v; rotated q, k; what is attended
    query = norm + 2 * narrow + scores + mask + ffn     # rotated q; what is attended
    if recompute:                                       # the inputs, and one block at a time
        blocks = (c.content_layers + c.query_layers) * wide + max(content, query)
    else:
        blocks = c.content_layers * content + c.query_layers * query
    shared = norm + 3 * narrow                          # keys, values; rotated keys
    ends = mask + 2 * wide + 4 + wide + 8 + 8 * c.head_dim  # last norm, gradient; ids, rotations
    first_query = norm - 4                              # of one vector, not one a token
    return images * tokens * (blocks + shared + ends - first_query)


def memory(c: ModelConfig, t: TrainConfig, tokens: int, images: int, processes: int = 1,
           half: bool = False, shard: bool = False, recompute: bool = False) -> dict[str, int]:
    """Bytes by part, in each process, of training with `images` at a time."""
    count, spread = parameters(c), processes if shard else 1
    ends = (2 * c.vocab_size + c.num_classes + 3) * c.dim
    layers = c.content_layers + c.query_layers
    block = 4 * c.dim**2 + 3 * c.dim * c.ffn_hidden
    if shard:                                           # what is put together at one time
        copies = (2 if half else 4) * (ends + 2 * c.dim**2 + 2 * block)
    else:                                               # autocast's, of every matrix product's
        copies = 2 * (count - ends - (2 * layers + 2) * c.dim) if half else 0
    rows = min(t.loss_rows, images * tokens)
    return {"weights": 4 * count // spread, "gradients": 4 * count // spread,
            "optimizer": 8 * count // spread, "running average": 4 * count // spread,
            "weights to compute with": copies,
            "averaged weights, whole, in the first": 4 * count if shard else 0,
            "activations": kept_bytes(c, tokens, images, half, recompute),
            "logits": 3 * 4 * rows * c.vocab_size + 4 * c.vocab_size * c.dim}


def describe(run: dict, options) -> str:
    """All of it in words, for a run as `config.describe_run` gives it."""
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
    lines += [f"{bytes / 1e9:10.2f} GB  {name}" for name, bytes in parts.items()]
    lines += [f"{sum(parts.values()) / 1e9:10.2f} GB  at most together; CUDA takes about 1 GB more"]
    fits = [f"{card} GB: {most_images(c, t, tokens, card, how) or 'none'}" for card in (24, 40, 80)]
    lines += [f"--micro-batch at most, by card: {', '.join(fits)}",
              f"speed, assuming {options.device_tflops:g} TFLOP/s a device of which "
              f"{options.utilisation:.0%} is reached: {rate:,.0f} images/s, the run in "
              f"{t.steps * t.batch_size / rate / 3600:,.1f} hours"]
    return "\n".join(lines)


def most_images(c: ModelConfig, t: TrainConfig, tokens: int, card: int, how: dict) -> int:
    """The most images at a time that fit a card of so many GB, a tenth and 1 GB kept free."""
    return max((n for n in range(1, 1025)
                if sum(memory(c, t, tokens, n, **how).values()) < (0.9 * card - 1) * 1e9),
               default=0)
