"""Count what a GPU would do, without one: kernels, bytes, FLOPs, attention shapes, waits.

The one idea: fake tensors run the true sizes without memory or arithmetic, and a dispatch mode sees
every operator with its shapes and types. So the counts do not depend on this machine.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..attention import RMSNorm, rotary_table
from ..config import ModelConfig
from ..decoding import make_plan, run_steps
from ..model import ARPG
from ..sampling import Settings


class Card(NamedTuple):
    """What a card reaches in practice, about three quarters of its data sheet."""
    bandwidth: float                        # bytes per second
    rate: float                             # FLOP/s of bfloat16 products (T4: float16)
    float64: float                          # FLOP/s


CARDS = {"H100": Card(2.7e12, 600e12, 34e12), "A100": Card(1.5e12, 230e12, 9.7e12),
         "RTX 4090": Card(0.9e12, 145e12, 1.3e12), "T4": Card(0.26e12, 45e12, 0.25e12)}
LAUNCH = 2.5e-6                             # seconds of the smallest kernel
FREE = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach", "alias",
        "lift_fresh", "_unsafe_view", "_reshape_alias", "sym_size", "set_")
PICKS = "embedding", "index", "gather", "index_select"      # read only what they return
WAITS = "_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"


@dataclass
class Counts:
    """What a piece of work makes a GPU do."""
    kernels: int = 0
    float64: int = 0                        # of the kernels
    float64_numbers: int = 0                # that these write
    bytes: int = 0                          # read and written
    flops: int = 0                          # of products and attention
    waits: list[str] = field(default_factory=list)
    attention: set[tuple] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CARDS, 0.0))

    def add(self, tensors: list[Tensor], moved: int, flops: int = 0) -> None:
        """Add one kernel that moves so many bytes."""
        wide = [t for t in tensors if t.dtype in (torch.float64, torch.complex128)]
        numbers = max((t.numel() for t in wide), default=0)
        self.kernels, self.flops, self.bytes = (
            self.kernels + 1, self.flops + flops, self.bytes + moved)
        self.float64, self.float64_numbers = (
            self.float64 + bool(wide), self.float64_numbers + numbers)
        for name, card in CARDS.items():
            self.seconds[name] += max(LAUNCH, moved / card.bandwidth, flops / card.rate,
                                      numbers / card.float64)


def size(t: Tensor) -> int:
    """Bytes of a tensor; repeated ones count once."""
    return t.element_size() * math.prod(
        n for n, stride in zip(t.shape, t.stride()) if stride or n == 0)


class Counter(TorchDispatchMode):
    """Counts every operator that would start a kernel."""

    def __init__(self):
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(self, operator, types, arguments=(), named=None):
        named = named or {}
        out, name = operator(*arguments, **named), operator.overloadpacket.__name__
        inputs = [t for t in tree_leaves((arguments, named)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if name in WAITS or len({t.device for t in inputs + outputs if t.ndim}) > 1:
            self.counts.waits.append(name)              # the host waits, or data crosses over
        if operator.is_view or name in FREE or not outputs:
            return out
        moved = sum(size(t) for t in outputs)
        moved += moved if name in PICKS else sum(size(t) for t in inputs)
        formula = flop_registry.get(operator.overloadpacket)
        self.counts.add(inputs + outputs, moved,
                        formula(*arguments, **named, out_val=out) if formula else 0)
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None,
               is_causal: bool = False, **_) -> Tensor:
        """In place of the fused attention kernel, whose choice needs a device."""
        return Attention.apply(self.counts, q, k, v, attn_mask, is_causal)

    def normalise(self, x: Tensor, shape: tuple, weight: Tensor | None = None,
                  eps: float = 0.0) -> Tensor:
        """In place of `F.rms_norm`, which is one kernel on a GPU and several elsewhere."""
        return Norm.apply(self.counts, x, weight)

    def drop(self, x: Tensor, p: float, training: bool = True) -> Tensor:
        """In place of `F.dropout`, for the same reason."""
        return torch.native_dropout(x, p, True)[0] if p and training else x


class Norm(torch.autograd.Function):
    """One kernel forward, two backward."""

    @staticmethod
    def forward(ctx, counts: Counts, x: Tensor, weight: Tensor | None):
        ctx.counts, ctx.x, ctx.weight = counts, x, weight
        counts.add([x], 2 * size(x))
        return x.new_empty(x.shape)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x = ctx.x
        for _ in range(1 if ctx.weight is None else 2):
            ctx.counts.add([x], 3 * size(x))
        return None, x.new_empty(x.shape), None if ctx.weight is None else ctx.weight.new_empty(
            ctx.weight.shape)


class Attention(torch.autograd.Function):
    """One kernel forward, one backward (with its preparation: two)."""

    @staticmethod
    def forward(ctx, counts: Counts, q: Tensor, k: Tensor, v: Tensor, mask, is_causal: bool):
        ctx.counts = counts
        ctx.save_for_backward(q, k, v)
        counts.attention.add((*q.shape, k.shape[2], mask is not None, is_causal))
        moved = sum(map(size, (q, q, k, v))) + (size(mask) if mask is not None else 0)
        counts.add([q], moved, 4 * q.numel() * k.shape[2] // (1 + is_causal))
        return q.new_empty(q.transpose(1, 2).shape).transpose(1, 2)     # as flash attention does

    @staticmethod
    def backward(ctx, gradient: Tensor):
        q, k, v = ctx.saved_tensors
        ctx.counts.add([q], 2 * size(q))
        ctx.counts.add([q], 2 * sum(map(size, (q, q, k, v))), 10 * q.numel() * k.shape[2] // 2)
        return None, q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), None, None


@contextlib.contextmanager
def counting(*modes) -> Iterator[Counter]:
    """Count what is done inside, under more dispatch modes or patches if given."""
    counter = Counter()
    with contextlib.ExitStack() as stack:
        for mode in (*modes, counter, patch.multiple(
                F, scaled_dot_product_attention=counter.attend, rms_norm=counter.normalise,
                dropout=counter.drop)):
            stack.enter_context(mode)
        yield counter


def count_decode(config: ModelConfig, batch: int, steps: int, guidance: float = 4.0,
                 dtype: torch.dtype = torch.bfloat16) -> list[Counts]:
    """What each step of a decode costs. The plan is made before."""
    how = Settings(steps=steps, guidance=guidance)
    table = rotary_table(config.grid, config.head_dim, config.rope_base, "cpu", torch.complex64)
    planner = SimpleNamespace(config=config, null_label=config.num_classes, control=None,
                              embedding=SimpleNamespace(weight=torch.empty(0)),
                              rotary=lambda *_: table)
    plan = make_plan(planner, [i % config.num_classes for i in range(batch)], range(batch), how)
    with torch.device("meta"):
        model = ARPG(config).to(dtype)
    plan = plan._replace(**{name: t.to("meta") for name, t in plan._asdict().items()
                            if isinstance(t, Tensor)})
    each = []
    with counting() as counter:
        for _ in run_steps(model, plan, how):
            each.append(counter.counts)
            counter.counts = Counts()
    return each


def count_training(config: ModelConfig, images: int, loss_rows: int, half: bool = True) -> Counts:
    """What forward and backward of one micro-batch cost. (The device is a fake CPU, since autocast
    knows no others; it casts for the same operators.)"""
    n = math.prod(config.grid)

    def norm(layer: RMSNorm, x: Tensor) -> Tensor:          # as on a GPU
        return F.rms_norm(x, layer.gain.shape, layer.gain.to(x.dtype), layer.eps)

    with counting(FakeTensorMode(), patch.object(RMSNorm, "forward", norm)) as counter:
        model = ARPG(config).train()
        tokens, orders = torch.empty(2, images, n, dtype=torch.long)
        labels = torch.empty(images, dtype=torch.long)
        table = torch.empty(n + 1, config.head_dim // 2, dtype=torch.complex64)
        model.rotary = lambda *_: table                     # the real one is kept and used again
        counter.counts = Counts()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(tokens, labels, orders, loss_rows=loss_rows)
        loss.backward()
    return counter.counts


def bench_count(preset, options, device: torch.device, dtype: torch.dtype) -> list[dict]:
    """One row per piece of work: a middle step of a decode, the whole decode, a micro-batch. Always
    for a GPU in bfloat16, whatever --device and --precision say: nothing is computed."""
    c, rows = preset.model, []
    for batch in options.batch_size:
        for steps in options.steps:
            each = count_decode(c, batch, steps, options.guidance)
            middle = len(each) // 2
            rows += [row(f"step {middle + 1} of {steps}", batch, [each[middle]]),
                     row(f"{steps} steps", batch, each)]
        rows.append(row("training, one micro-batch", batch,
                        [count_training(c, batch, preset.train.loss_rows)]))
    return rows


def row(work: str, images: int, counts: list[Counts]) -> dict:
    """The sum of the counts of some pieces of work."""
    total = {name: sum(getattr(part, name) for part in counts)
             for name in ("kernels", "float64", "float64_numbers", "bytes", "flops")}
    seconds = {name: sum(part.seconds[name] for part in counts) for name in CARDS}
    return {"work": work, "images": images, **total, "waits": sum(len(p.waits) for p in counts),
            "attention_shapes": len(set().union(*(part.attention for part in counts))),
            "seconds": seconds, "rates": {name: images / s for name, s in seconds.items()}}
