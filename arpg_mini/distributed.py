"""Several processes: starting them, finding one's place among them, agreeing.

The one idea: the same program runs in every process, and `torch.distributed` does the rest. One
process is the case where nothing needs to be done. NCCL joins GPUs, gloo joins CPU processes, so
that what runs on eight GPUs can be tested on a laptop.
"""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from .config import UserError, complain
from .model import ARPG

T = TypeVar("T")
waiting = None                                 # the group that CPUs agree in


# Ctrl-C, a scheduler's end, and the warning before it (SLURM's --signal=USR1@120).
STOPPING = signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)


def pick_device(name: str | None, gpus: int = 1) -> str:
    """The device type of --device, or the best there is. UserError if it isn't there."""
    if name is None:
        if gpus > 1 and not torch.cuda.is_available():
            raise UserError(f"--gpus {gpus}: this machine has no CUDA device; --device cpu starts "
                            "as many CPU processes")
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: must be cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device; leave the flag out or "
                        "take cpu")
    return name


def launch(main, gpus: int, device: str, *arguments) -> int | None:
    """Call `main(*arguments, device)`, which returns an exit code or None, in `gpus` processes (or
    as torchrun's process, if that started us)."""
    if gpus < 1:
        raise UserError(f"--gpus {gpus}: must be 1 or more")
    if "LOCAL_RANK" in os.environ:
        return _member(int(os.environ["LOCAL_RANK"]), main, device, *arguments)
    if device == "cuda" and gpus > torch.cuda.device_count():
        raise UserError(f"--gpus {gpus}: this machine has {torch.cuda.device_count()} of them")
    if gpus == 1:
        return main(*arguments, torch.device(device))
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), WORLD_SIZE=str(gpus),
                      OMP_NUM_THREADS=str(max(1, (os.cpu_count() or 1) // gpus)))
    processes = mp.spawn(_spawned, args=(main, device, *arguments), nprocs=gpus, join=False)
    for number in STOPPING:                    # each process decides what to do about it
        signal.signal(number, lambda n, _: [os.kill(pid, n) for pid in processes.pids()])
    try:
        while not processes.join():
            pass
    except mp.ProcessExitedException as error:
        if error.exit_code < 0:
            print(f"process {error.error_index} was ended by signal {-error.exit_code}"
                  + " (9: likely out of memory)" * (error.exit_code == -9), file=sys.stderr)
        raise SystemExit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code
                         ) from None


def _spawned(rank: int, main, device: str, *arguments) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    _member(rank, main, device, *arguments)


def _member(local_rank: int, main, device: str, *arguments) -> None:
    place = torch.device(device, local_rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(place)
    # An hour: process 0 may have to write a large checkpoint while others wait for its gradient.
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(hours=1))
    # It may train a tokenizer or put ids together for longer; and CPUs can agree without GPUs.
    global waiting
    waiting = dist.new_group(backend="gloo", timeout=timedelta(days=2))
    try:
        code = main(*arguments, place) or 0
    except UserError as error:
        code = complain(Path(sys.argv[0]).name, error)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if code:            # at once: winding down would wait for processes that wait for this one
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier(waiting)


def from_first(work: Callable[[], T]) -> T:
    """What `work` returns in the first process, in all of them; its user's mistake ends all, said
    once, before any other may end and take the first with it."""
    if world() == 1:
        return work()
    box = [None, 0]
    if rank() == 0:
        try:
            box[0] = work()
        except UserError as error:
            box[1] = complain(Path(sys.argv[0]).name, error)
    dist.broadcast_object_list(box, group=waiting)
    if box[1]:
        raise SystemExit(box[1])
    return box[0]


def wrap(model: ARPG, device: torch.device, shard: bool = False, half: bool = False) -> nn.Module:
    """The module to call in training: gradients come out averaged over the processes.

    By default each process holds everything (DDP). `shard` spreads weights, gradients and optimizer
    over the processes, a block at a time put together when it is needed (FSDP2), in place; `half`
    then computes in bfloat16 (there is no autocast, which would keep whole copies of the weights).
    """
    if not shard or world() == 1:
        # Buckets that are never rebuilt: DDP otherwise regroups the gradients after the first step
        # of a process, and so sums them in another order after a resume.
        return (nn.parallel.DistributedDataParallel(
            model, gradient_as_bucket_view=True, find_unused_parameters=True)
            if world() > 1 else model)
    how = {"mesh": init_device_mesh(device.type, (world(),)),
           "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16 if half else None,
                                             reduce_dtype=torch.float32)}
    for block in [*model.content, *model.query]:
        fully_shard(block, **how)
    return fully_shard(model, **how)


def whole_state(model: ARPG, average: ARPG, optimizer: torch.optim.Optimizer) -> dict:
    """All that training needs to go on, in CPU memory, the same however many processes there are.

    To be called by all processes; sharded, only the first gets it, the others empty ones.
    """
    how = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {"model": whole_weights(model), "ema": whole_weights(average),
            "optimizer": get_optimizer_state_dict(model, optimizer, options=how)}


def whole_weights(model: ARPG) -> dict:
    """The weights alone, likewise."""
    how = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=how)


def load_state(saved: dict | None, model: ARPG, average: ARPG,
               optimizer: torch.optim.Optimizer | None = None) -> None:
    """Hand the first process's `saved` to all; the others' is None. Weights that it lacks stay."""
    how = StateDictOptions(full_state_dict=True, broadcast_from_rank0=world() > 1, strict=False)
    saved = saved or {"model": {}, "ema": {}, "optimizer": {}}
    set_model_state_dict(model, saved["model"], options=how)
    set_model_state_dict(average, saved["ema"], options=how)
    if optimizer:
        set_optimizer_state_dict(model, optimizer, saved["optimizer"], options=how)


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over the processes."""
    if world() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= world()
    return value


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in any process: all get the same answer, and no GPU is waited for."""
    if world() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, group=waiting)
    return bool(flags)


def gather(part) -> list:
    """Every process's part, in order, in process 0; others get an empty list."""
    if world() == 1:
        return [part]
    parts = [None] * world() if rank() == 0 else None
    dist.gather_object(part, parts)
    return parts or []
