"""Faster decoding: compiled blocks, and on a GPU whole decodes recorded as CUDA graphs.

The one idea: all shapes of a decode are known before it starts, and it never waits for the device.
So its steps can be recorded, one graph each, and replayed for the next batch. The CPU then launches
one graph per step, and not one kernel per operation.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields

import torch
from torch import Tensor

from .. import UserError
from ..decoding import Plan, run_steps
from ..model import ARPG
from ..sampling import Settings

# Settings that are already in the plan: the steps do not read them.
PLANNED = {"steps", "schedule", "orders", "known", "grid", "positions", "control", "against"}


def compile_blocks(model: ARPG, **options) -> None:
    """Compile the model's blocks, once for steps of all sizes and for all layers.

    PyTorch's compiler treats a size of 1 (a batch, a step, a cache that holds only the class) and a
    mask as special cases. So a first decode compiles about ten times, and later ones do not.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(64, config.recompile_limit)    # over all layers; the default is 8
    config.specialize_float = True              # otherwise rates and epsilons are read from tensors
    for block in [*model.content, *model.query]:
        block.compile(dynamic=True, **options)


def cuda_graph(work: Callable[[], object], earlier: list) -> torch.cuda.CUDAGraph:
    """Record what `work` does on the device. The graph is replayed after the `earlier` graphs and
    shares their memory."""
    graph = torch.cuda.CUDAGraph()
    pool = earlier[0].pool() if earlier else None
    # Only this thread must avoid what can't be recorded. Others (NCCL's, for example) may do it.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        work()
    return graph


class Recording:
    """The steps of a decode as graphs, which read and write the tensors of their own plan."""

    def __init__(self, model: ARPG, plan: Plan, how: Settings, graph=cuda_graph):
        self.plan = Plan(*(v.clone() if isinstance(v, Tensor) else v for v in plan))
        # The generator is kept, because its variables (the cache above all) are the memory that
        # one graph leaves to the next.
        self.steps = run_steps(model, self.plan, how)
        self.graphs: list = []
        for _ in plan.sizes:
            self.graphs.append(graph(lambda: next(self.steps), self.graphs))
        self.busy = False

    def run(self, plan: Plan) -> Iterator[Tensor]:
        """The same as `run_steps`, for a plan of the same shapes."""
        self.busy = True
        try:
            for own, given in zip(self.plan, plan):
                if isinstance(own, Tensor):
                    own.copy_(given)
            for graph in self.graphs:
                graph.replay()
                yield plan.ids.copy_(self.plan.ids)     # the next decode overwrites the source
        finally:
            self.busy = False


class Recorder:
    """`run_steps` for a model that decodes the same shapes many times.

    The first decode of given shapes and settings runs as usual, so that everything is compiled. The
    second is recorded, and then it and all later ones are replayed. One recording is kept, until a
    decode has other shapes or settings or the weights are elsewhere in memory.
    """

    def __init__(self, graph=cuda_graph):
        self.graph = graph
        self.key: tuple | None = None                   # of the last decode
        self.recording: Recording | None = None

    def __call__(self, model: ARPG, plan: Plan, how: Settings) -> Iterator[Tensor]:
        key = (list(plan.sizes), torch.is_inference_mode_enabled(),
               [isinstance(v, Tensor) and (v.shape, v.dtype, v.device) for v in plan],
               [getattr(how, f.name) for f in fields(how) if f.name not in PLANNED],
               [(p.data_ptr(), p.dtype) for p in model.parameters()])
        # Nothing is recorded under autocast: its copies of weights last only while it is on.
        if not plan.sizes or torch.is_autocast_enabled(plan.ids.device.type):
            yield from run_steps(model, plan, how)
        elif key != self.key:
            self.key = self.recording = None            # it may hold memory that is needed
            yield from run_steps(model, plan, how)
            self.key, self.recording = key, None
        elif self.recording and self.recording.busy:    # two decodes can't use the same memory
            yield from run_steps(model, plan, how)
        else:
            self.recording = self.recording or Recording(model, plan, how, self.graph)
            yield from self.recording.run(plan)


def speed_up(model: ARPG, device: torch.device) -> None:
    """`--compile` for decoding: compiled blocks and, on CUDA, graphs. UserError if PyTorch can't
    compile on this machine."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:                  # no compiler, no Triton, a Python too new, …
        raise UserError(f"--compile: PyTorch can't compile on this machine "
                        f"({str(error).strip().splitlines()[0]})") from None
    compile_blocks(model)
    if device.type == "cuda":
        model.run_steps = Recorder()
