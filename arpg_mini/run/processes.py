"""Several processes: how they start, share, agree and stop.

The one idea: every process runs the same program, and `torch.distributed` does the rest. NCCL
connects GPUs and gloo connects CPU processes, so a laptop can test what runs on eight GPUs.
"""

import os
import shlex
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from .. import UserError
from ..model import ARPG
from .command import LAUNCHED, complain, exit_code, interface_to, launcher, print_anything

T = TypeVar("T")
waiting = None                                 # the process group in which CPUs agree
SAY, MEETING = 10.0, timedelta(minutes=10)      # to wait for the other processes, see `meet`

# Ctrl-C, the end of a scheduler's job, and the warning before it (SLURM's --signal=USR1@120).
STOPPING = signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)


class Stop:
    """Remembers that a signal to stop came, so that the step can be finished and saved."""

    def __init__(self, signals: Sequence[int] = STOPPING):
        self.signal, self.since = 0, 0.0
        for number in signals:
            signal.signal(number, self.remember)

    def remember(self, number: int, frame) -> None:
        """A second signal ends the program at once, unless it comes within a second: then it is the
        same one. (A terminal sends Ctrl-C to all processes, and the first passes it on.)"""
        if not self.signal:
            self.signal, self.since = number, time.monotonic()
        elif time.monotonic() - self.since > 1:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def leave(self, out: Path, after: str) -> NoReturn:
        """End this process after a signal. The first one prints how to continue."""
        if rank() == 0:
            print(f"stopped by a signal after {after}, saved; continue with: python train_mini.py "
                  f"--resume --out {shlex.quote(str(out))}", file=sys.stderr)
        raise SystemExit(128 + (self.signal or signal.SIGTERM))  # another may have got the signal


def pick_device(name: str | None, gpus: int = 1) -> str:
    """The device type of --device, or the best one here. UserError if this machine lacks it."""
    if name is None:
        if gpus > 1 and not torch.cuda.is_available():
            raise UserError(f"--gpus {gpus}: this machine has no CUDA device; --device cpu starts "
                            "CPU processes")
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: must be cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device; leave the flag out or "
                        "use cpu")
    return name


def pick_precision(name: str | None, device: torch.device) -> torch.dtype:
    """The type of --precision, or bfloat16 on a GPU that computes in it, else float32."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return getattr(torch, name or ("bfloat16" if native else "float32"))


def launch(main, gpus: int, device: str, *arguments) -> int | None:
    """Call `main(*arguments, device)` in `gpus` processes, or in this one if torchrun started it.
    `main` returns an exit code or None."""
    if gpus < 1:
        raise UserError(f"--gpus {gpus}: must be 1 or more")
    if place := launcher():
        if device == "cuda" and place[2] >= torch.cuda.device_count():
            raise UserError(f"LOCAL_RANK={place[2]}: this machine has {torch.cuda.device_count()} "
                            "CUDA devices")
        return _member(place[2], main, device, *arguments)
    if left := [name for name in LAUNCHED if os.environ.get(name)]:
        print(f"{', '.join(left)}: ignored, since a launcher sets all of {', '.join(LAUNCHED)}",
              file=sys.stderr)
    if device == "cuda" and gpus > torch.cuda.device_count():
        raise UserError(f"--gpus {gpus}: this machine has {torch.cuda.device_count()} of them")
    if gpus == 1:
        return main(*arguments, set_up(torch.device(device)))
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), WORLD_SIZE=str(gpus),
                      OMP_NUM_THREADS=str(max(1, (os.cpu_count() or 1) // gpus)))
    processes = mp.spawn(_spawned, args=(main, device, *arguments), nprocs=gpus, join=False)
    for number in STOPPING:                    # each process decides what to do
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


def set_up(device: torch.device) -> torch.device:
    """Set how a GPU computes. A decode has a different attention shape in every step, and cuDNN
    would plan each for long. Float32 products use tensor cores."""
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.set_float32_matmul_precision("high")
    return device


def _spawned(local_rank: int, main, device: str, *arguments) -> None:
    """One of the processes that `launch` starts."""
    global SAY
    print_anything()
    SAY = MEETING.total_seconds()               # nobody needs to start the others
    os.environ.update(RANK=str(local_rank), LOCAL_RANK=str(local_rank))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    _member(local_rank, main, device, *arguments)


def _member(local_rank: int, main, device: str, *arguments) -> None:
    """One of several processes, however it was started."""
    def work() -> int | None:
        place = torch.device(device, local_rank) if device == "cuda" else torch.device("cpu")
        if device == "cuda":
            torch.cuda.set_device(place)
        meet("nccl" if device == "cuda" else "gloo")
        return main(*arguments, set_up(place))

    try:
        code = exit_code(Path(sys.argv[0]).name, work)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if code:            # at once: a normal exit would wait for processes that wait for this one
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    dist.destroy_process_group()


def meet(backend: str) -> None:
    """Connect all processes. After `SAY` seconds it prints what it waits for; UserError after
    `MEETING`."""
    at = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    others = int(os.environ["WORLD_SIZE"]) - 1
    hint = f"if nothing started them, unset {', '.join(LAUNCHED)}"
    word = threading.Timer(SAY, print, [f"waiting for {others} other processes at {at}; {hint}"],
                           {"file": sys.stderr, "flush": True})
    word.start()
    if int(os.environ.get("LOCAL_WORLD_SIZE", others + 1)) <= others and (      # several machines
            name := interface_to(os.environ["MASTER_ADDR"])):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    try:
        store, rank, world = next(dist.rendezvous("env://", timeout=MEETING))
        # An hour: others wait for process 0's gradient while it writes a large checkpoint.
        store.set_timeout(timedelta(hours=1))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world,
                                timeout=timedelta(hours=1))
    except dist.DistError as error:
        raise UserError(f"MASTER_ADDR, MASTER_PORT {at}: did not meet {others} other processes "
                        f"({str(error).splitlines()[0][:100]}); {hint}; if they run on other "
                        "machines, GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME must name the network "
                        "interface between them") from None
    finally:
        word.cancel()
    # Days: process 0 may train a tokenizer. With gloo, because CPUs can agree without GPUs.
    global waiting
    waiting = dist.new_group(backend="gloo", timeout=timedelta(days=2))


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier(waiting)


def from_first(work: Callable[[], T]) -> T:
    """Call `work` in the first process and return its result in all of them. A user's mistake is
    printed once and ends all processes."""
    if world() == 1:
        return work()
    box = [None, 0]
    if rank() == 0:
        try:
            box[0] = work()
        except (UserError, OSError) as error:
            box[1] = complain(Path(sys.argv[0]).name, error)
    dist.broadcast_object_list(box, group=waiting)
    if box[1]:
        raise SystemExit(box[1])
    return box[0]


def wrap(model: ARPG, device: torch.device, shard: bool = False, half: bool = False) -> nn.Module:
    """The module to call in training. Its gradients are averaged over the processes.

    By default each process holds everything (DDP). `shard` spreads weights, gradients and optimizer
    over the processes, in place, and gathers one block at a time when it is needed (FSDP2). `half`
    then computes in bfloat16, without autocast, which would keep whole copies of the weights.
    """
    if not shard or world() == 1:
        if world() == 1:
            return model
        # With unused parameters allowed, DDP never rebuilds its buckets. Otherwise it regroups the
        # gradients after a process's first step, and a resumed run sums them in another order. For
        # the same reason a hook divides the sums: DDP itself multiplies new gradients by 1 / world
        # and divides kept ones by world, which rounds otherwise.
        call = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True,
                                                   find_unused_parameters=True)
        call.register_comm_hook(None, default_hooks.allreduce_hook)
        return call
    how = {"mesh": init_device_mesh(device.type, (world(),)),
           "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16 if half else None,
                                             reduce_dtype=torch.float32)}
    for block in [*model.content, *model.query]:
        fully_shard(block, **how)
    return fully_shard(model, **how)


def whole_state(model: ARPG, average: ARPG, optimizer: torch.optim.Optimizer) -> dict:
    """All that a run needs to continue, in CPU memory; sharded, only the first process gets it."""
    how = states.StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {"model": whole_weights(model), "ema": whole_weights(average),
            "optimizer": states.get_optimizer_state_dict(model, optimizer, options=how)}


def whole_weights(model: ARPG) -> dict:
    """The same for the weights alone."""
    how = states.StateDictOptions(full_state_dict=True, cpu_offload=True)
    return states.get_model_state_dict(model, options=how)


def load_state(saved: dict | None, model: ARPG, average: ARPG,
               optimizer: torch.optim.Optimizer | None = None) -> None:
    """Load the first process's `saved` in all; it is None in the others. Missing weights stay."""
    how = states.StateDictOptions(full_state_dict=True, strict=False,
                                  broadcast_from_rank0=world() > 1)
    saved = saved or {"model": {}, "ema": {}, "optimizer": {}}
    states.set_model_state_dict(model, saved["model"], options=how)
    states.set_model_state_dict(average, saved["ema"], options=how)
    if optimizer:
        states.set_optimizer_state_dict(model, optimizer, saved["optimizer"], options=how)


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over the processes."""
    if world() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= world()
    return value


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in any process. All get the same answer, without waiting for a GPU."""
    if world() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, group=waiting)
    return bool(flags)


def gather(part) -> list:
    """In process 0 every process's part, in order; in the others an empty list."""
    if world() == 1:
        return [part]
    parts = [None] * world() if rank() == 0 else None
    dist.gather_object(part, parts)
    return parts or []
