"""Several processes: starting them, finding one's place among them, agreeing.

The one idea: the same program runs in every process, and `torch.distributed` does the rest. One
process is the case where nothing needs to be done. NCCL joins GPUs, gloo joins CPU processes, so
that what runs on eight GPUs can be tested on a laptop.
"""

import os
import signal
import socket
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from .config import UserError, complain


def pick_device(name: str | None) -> str:
    """The device type of --device, or the best there is. UserError if it isn't there."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: must be cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device; leave the flag out or "
                        "take cpu")
    return name


def launch(main, gpus: int, device: str, *arguments) -> None:
    """Call `main(*arguments, device)` in `gpus` processes (or as torchrun's process, if that
    started us)."""
    if gpus < 1:
        raise UserError(f"--gpus {gpus}: must be 1 or more")
    if "LOCAL_RANK" in os.environ:
        return _member(int(os.environ["LOCAL_RANK"]), main, device, *arguments)
    if device == "cuda" and gpus > torch.cuda.device_count():
        raise UserError(f"--gpus {gpus}: this machine has {torch.cuda.device_count()}")
    if gpus == 1:
        return main(*arguments, torch.device(device))
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), WORLD_SIZE=str(gpus),
                      OMP_NUM_THREADS=str(max(1, (os.cpu_count() or 1) // gpus)))
    processes = mp.spawn(_spawned, args=(main, device, *arguments), nprocs=gpus, join=False)
    for number in (signal.SIGINT, signal.SIGTERM):  # each process decides what to do about it
        signal.signal(number, lambda n, _: [os.kill(pid, n) for pid in processes.pids()])
    try:
        while not processes.join():
            pass
    except mp.ProcessExitedException as error:
        raise SystemExit(error.exit_code) from None


def _spawned(rank: int, main, device: str, *arguments) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        _member(rank, main, device, *arguments)
    except UserError as error:
        sys.exit(complain(Path(sys.argv[0]).name, error))


def _member(local_rank: int, main, device: str, *arguments) -> None:
    place = torch.device(device, local_rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(place)
    # Process 0 may train a tokenizer or write files for hours while the others wait.
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(days=2))
    try:
        main(*arguments, place)
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def wrap(model: nn.Module) -> nn.Module:
    """The module to call in training: averages gradients over the processes, if there are
    several."""
    return nn.parallel.DistributedDataParallel(model) if world() > 1 else model


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over the processes."""
    if world() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= world()
    return value


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set in any process: all get the same answer."""
    if world() == 1:
        return flag
    return bool(mean(torch.tensor(float(flag), device=device)) > 0)


def gather(part) -> list:
    """Every process's part, in order, in process 0; others get an empty list."""
    if world() == 1:
        return [part]
    parts = [None] * world() if rank() == 0 else None
    dist.gather_object(part, parts)
    return parts or []
