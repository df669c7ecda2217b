"""Decoding faster: compiled blocks, and on a GPU whole decodes recorded as CUDA graphs.

The one idea: all shapes of a decode are known before it starts, and nothing in it waits for the
device. So its steps can be recorded, one graph each, and replayed for the next batch, which costs
the CPU one launch a step in place of one for each operation. Blocks are compiled for sizes that
vary: what differs between steps is how many tokens are read, cached and asked for.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields

import torch
from torch import Tensor

from .config import UserError
from .decoding import Plan, Settings, run_steps
from .model import ARPG

# Settings that a plan has taken in: the steps do not look at them.
PLANNED = {"steps", "schedule", "orders", "known", "grid", "positions", "control", "against"}


def compile_blocks(model: ARPG, **options) -> None:
    """Compile the model's blocks, once for steps of all sizes and for all layers.

    To PyTorch's compiler a size of 1 (a batch, a step, a cache that holds the class alone) and a
    mask are cases of their own: some ten compilations in a first decode, none in later ones like
    it. Rounding may differ from what blocks compute that are not compiled.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(64, config.recompile_limit)    # over all layers; 8 by default
    config.specialize_float = True              # or rates and epsilons would be read from tensors
    for block in [*model.content, *model.query]:
        block.compile(dynamic=True, **options)


def cuda_graph(work: Callable[[], object], earlier: list) -> torch.cuda.CUDAGraph:
    """What `work` would do on the device, to be replayed after the `earlier` graphs: one after the
    other, they share memory."""
    graph = torch.cuda.CUDAGraph()
    pool = earlier[0].pool() if earlier else None
    # Only this thread must do nothing that can't be recorded; NCCL's, say, may.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        work()
    return graph


class Recording:
    """A decode's steps as graphs, which read and write the tensors of a plan of their own."""

    def __init__(self, model: ARPG, plan: Plan, how: Settings, graph=cuda_graph):
        self.plan = Plan(*(v.clone() if isinstance(v, Tensor) else v for v in plan))
        # Kept where it stops: its variables are the memory through which one graph, the cache
        # above all, hands on to the next.
        self.steps = run_steps(model, self.plan, how)
        self.graphs: list = []
        for _ in plan.sizes:
            self.graphs.append(graph(lambda: next(self.steps), self.graphs))
        self.busy = False

    def run(self, plan: Plan) -> Iterator[Tensor]:
        """As `run_steps`, for a plan of the same shapes."""
        self.busy = True
        try:
            for own, given in zip(self.plan, plan):
                if isinstance(own, Tensor):
                    own.copy_(given)
            for graph in self.graphs:
                graph.replay()
                yield plan.ids.copy_(self.plan.ids)     # the next decode may not overwrite them
        finally:
            self.busy = False


class Recorder:
    """`run_steps` for a model that decodes the same shapes again and again.

    The first decode of its shapes and settings runs as usual, to its end: what is to be compiled or
    set up then is. The second is recorded, and it and all that follow are replayed. One recording
    is kept, until a decode is another, or weights have moved; new values in them are seen.
    """

    def __init__(self, graph=cuda_graph):
        self.graph = graph
        self.key: tuple | None = None                   # of the decode that ran last
        self.recording: Recording | None = None

    def __call__(self, model: ARPG, plan: Plan, how: Settings) -> Iterator[Tensor]:
        key = (list(plan.sizes), torch.is_inference_mode_enabled(),
               [isinstance(v, Tensor) and (v.shape, v.dtype, v.device) for v in plan],
               [getattr(how, f.name) for f in fields(how) if f.name not in PLANNED],
               [(p.data_ptr(), p.dtype) for p in model.parameters()])
        # Autocast keeps copies of the weights only as long as it is on.
        if not plan.sizes or torch.is_autocast_enabled(plan.ids.device.type):
            yield from run_steps(model, plan, how)
        elif key != self.key:
            self.key = self.recording = None            # which may hold the memory that is needed
            yield from run_steps(model, plan, how)
            self.key, self.recording = key, None
        elif self.recording and self.recording.busy:    # one memory can't serve two at a time
            yield from run_steps(model, plan, how)
        else:
            self.recording = self.recording or Recording(model, plan, how, self.graph)
            yield from self.recording.run(plan)


def speed_up(model: ARPG, device: torch.device) -> None:
    """What `--compile` means for decoding: compiled blocks and, on CUDA, graphs.

    UserError if nothing can be compiled here.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:                  # no compiler, no Triton, a Python too new, …
        raise UserError(f"--compile: PyTorch can compile nothing here "
                        f"({str(error).strip().splitlines()[0]})") from None
    compile_blocks(model)
    if device.type == "cuda":
        model.run_steps = Recorder()
