"""Timing: several tasks in turns, and the peak rates of this machine.

The one idea: on a machine with other work, two times can be compared only if they were measured
together. So tasks take turns, one whole repetition each.
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
from torch.utils.benchmark import Timer
from tqdm import tqdm

from .. import UserError


class Work(NamedTuple):
    """A task to time. `start()` begins it and returns an iterator that does one step at a time."""

    steps: int
    start: Callable[[], Iterator]


def paired(works: dict[str, Work], repeats: int, device: torch.device,
           warm_up: int = 2) -> dict[str, np.ndarray]:
    """Seconds of every step of every task, (repeats, steps) each. The tasks take turns."""
    seconds = {name: np.zeros((repeats, work.steps)) for name, work in works.items()}
    with tqdm(total=repeats * sum(w.steps for w in works.values()), unit="step", desc="measuring",
              leave=False) as bar:
        for work in works.values():             # the first steps are slower and do not count
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
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(seconds: np.ndarray) -> dict[str, float]:
    """Median, minimum and maximum over repetitions."""
    return {"seconds": float(np.median(seconds)), "fastest": float(np.min(seconds)),
            "slowest": float(np.max(seconds))}


def matrix_rate(device: torch.device, dtype: torch.dtype, n: int = 2048) -> float:
    """FLOP/s of products of n×n matrices, best of ten."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / best_of_ten(lambda: a @ b)


def bandwidth(device: torch.device, numbers: int = 2**26) -> float:
    """Bytes/s of reading float32 numbers, more than any cache holds; best of ten."""
    x = torch.ones(numbers, device=device)
    return 4 * numbers / best_of_ten(x.sum)


def best_of_ten(work: Callable[[], object]) -> float:
    """Seconds. (The timer itself waits for a GPU.)"""
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return min(timer.timeit(1).mean for _ in range(10))


def peak_bytes(device: torch.device) -> int:
    """The most bytes that the process ever held, on a GPU those on the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":         # ru_maxrss would start at the parent process's memory
        with open("/proc/self/status") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_a_process(work, *arguments):
    """Call `work(*arguments, results)` in a new process, and return what it puts into `results`."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=work, args=(*arguments, results))
    process.start()
    process.join()
    if process.exitcode:
        raise UserError(f"{' '.join(sys.argv[1:])}: the measuring process ended with code "
                        f"{process.exitcode}, probably out of memory")
    return results.get()


def print_table(rows: list[dict], columns: dict[str, str | Callable[[dict], str]]) -> None:
    """Print a table. `columns`: title -> a function of a row, or its format ({x_G}: x / 1e9)."""
    cells = [list(columns)]
    for row in rows:
        values = row | {f"{k}_G": v / 1e9 for k, v in row.items() if isinstance(v, int | float)}
        cells.append([c.format(**values) if isinstance(c, str) else c(row)
                      for c in columns.values()])
    widths = [max(map(len, column)) for column in zip(*cells)]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths)).rstrip())
