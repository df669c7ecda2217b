"""Clocks and floors: what this machine can do at most, and works timed turn by turn.

The one idea: on a machine that does other things too, two figures can be compared only if both were
taken at the same time. So works take turns, and each is timed step by step. (Were their turns
single steps, each would find the processor's caches full of the others' numbers.)
"""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from .config import UserError


class Work(NamedTuple):
    """What is timed: `start()` begins it, and its iterator does a step each time it is asked."""

    steps: int
    start: Callable[[], Iterator]


def paired(works: dict[str, Work], repeats: int, device: torch.device,
           warm_up: int = 2) -> dict[str, np.ndarray]:
    """Seconds of every step of every work, (repeats, steps) each, all works taking turns."""
    seconds = {name: np.zeros((repeats, work.steps)) for name, work in works.items()}
    with tqdm(total=repeats * sum(w.steps for w in works.values()), unit="step", desc="measuring",
              leave=False) as bar:
        for work in works.values():             # the first steps are slower, and are not counted
            list(islice(work.start(), warm_up))
        for repeat in range(repeats):
            for name, work in works.items():
                running = work.start()
                for step in range(work.steps):
                    wait_for(device)
                    start = time.perf_counter()
                    next(running)
                    wait_for(device)
                    seconds[name][repeat, step] = time.perf_counter() - start
                    bar.update()
    return seconds


def wait_for(device: torch.device) -> None:
    """Until all that the device was given to do is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(seconds: np.ndarray) -> dict[str, float]:
    """Of the repetitions of one thing."""
    return {"seconds": float(np.median(seconds)), "fastest": float(np.min(seconds)),
            "slowest": float(np.max(seconds))}


def matrix_rate(device: torch.device, dtype: torch.dtype, n: int = 2048) -> float:
    """FLOP/s of products of n×n matrices, the best of ten."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / best_of_ten(lambda: a @ b, device)


def bandwidth(device: torch.device, numbers: int = 2**26) -> float:
    """Bytes/s at which float32 numbers are read, more of them than any cache holds; best of ten."""
    x = torch.ones(numbers, device=device)
    return 4 * numbers / best_of_ten(x.sum, device)


def best_of_ten(work: Callable[[], object], device: torch.device) -> float:
    """Seconds."""
    seconds = []
    for _ in range(10):
        wait_for(device)
        start = time.perf_counter()
        work()
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def peak_bytes(device: torch.device) -> int:
    """The most memory the process (or its share of the device) ever held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":         # where ru_maxrss starts at what the parent process held
        with open("/proc/self/status") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_a_process(work, *arguments):
    """What `work(*arguments, results)` puts into `results`, called in a process of its own."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=work, args=(*arguments, results))
    process.start()
    process.join()
    if process.exitcode:
        raise UserError(f"{' '.join(sys.argv[1:])}: the process that measures ended with code "
                        f"{process.exitcode}, likely out of memory")
    return results.get()


def print_table(rows: list[dict], columns: dict[str, Callable[[dict], str]]) -> None:
    """Columns by their titles, each a function of a row."""
    cells = [list(columns)] + [[show(row) for show in columns.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths)).rstrip())
