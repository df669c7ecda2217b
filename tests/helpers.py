"""Helpers of several tests: tiny models whose weights are large enough for mistakes to show."""

import contextlib
import importlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from arpg_mini import ARPG, ModelConfig
from arpg_mini.pretrained import load_released_arpg
from arpg_mini.run import prepare, processes
from tests.golden.recipe import tensor

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"


TINY = ["--steps", "6", "--tokenizer-steps", "8", "--batch-size", "8"]


def run(script, *arguments, cwd=ROOT, code=0, alone=False, **how) -> subprocess.CompletedProcess:
    """Run one of the two scripts as a user runs it. It must end with the exit code `code`.

    This process or, for several processes, its copies run it, which saves the import of torch. With
    `alone` or `how` it is a new program.
    """
    command = [str(ROOT / script), *map(str, arguments)]
    if alone or how:
        done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True,
                              timeout=300, **how)
    elif "--gpus" in command:
        done = Copy(command, cwd).end()
    else:
        done = run_here(command, cwd)
    assert done.returncode == code, done.stderr
    return done


class Copy:
    """A script that runs in a copy of this process (a fork), as do the processes it starts."""

    def __init__(self, command: list[str], cwd=ROOT):
        self.command, self.code = command, None
        self.out, self.err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        sys.stdout.flush(), sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            try:
                self.work(cwd)
            except BaseException:
                traceback.print_exc()
            os._exit(1)

    def work(self, cwd) -> None:
        """In the copy: what the script does, with its own output, signals and session."""
        os.setsid(), os.chdir(cwd)
        sys.stdout, sys.stderr = (
            open(number, "w", buffering=1, closefd=False) for number in (1, 2))
        os.dup2(self.out.fileno(), 1), os.dup2(self.err.fileno(), 2)
        for number in processes.STOPPING:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT
                          else signal.SIG_DFL)
        sys.argv, logging.raiseExceptions = self.command, False     # handlers have closed files
        processes.mp.spawn = partial(processes.mp.start_processes, start_method="fork")
        code = code_of(importlib.import_module(Path(self.command[0]).stem).main)
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code or 0)

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self.code is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.code = os.waitstatus_to_exitcode(ended[1])
        return self.code

    def end(self, timeout: float = 300) -> subprocess.CompletedProcess:
        """Wait until it has ended."""
        late = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > late:
                os.killpg(self.pid, signal.SIGKILL)
                raise TimeoutError(f"{self.command} took more than {timeout} s")
            time.sleep(0.02)
        return subprocess.CompletedProcess(self.command, self.code, self.said(self.out),
                                           self.said(self.err))

    def said(self, file) -> str:
        """What it has printed so far to `out` or `err`."""
        return os.pread(file.fileno(), 2**24, 0).decode(errors="replace")


def run_here(command: list[str], cwd) -> subprocess.CompletedProcess:
    """Run a script in this process, and forget what it leaves in it: signals, locks."""
    handlers = {number: signal.getsignal(number) for number in processes.STOPPING}
    out, err, here = io.StringIO(), io.StringIO(), os.getcwd()
    os.chdir(cwd)
    try:
        with (patch.object(sys, "argv", command), contextlib.redirect_stdout(out),
              contextlib.redirect_stderr(err), patch.object(prepare, "held", held := [])):
            code = code_of(importlib.import_module(Path(command[0]).stem).main)
    finally:
        os.chdir(here)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for file in held:
            file.close()
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def code_of(main) -> int:
    """The exit code of a command's `main`, whether it returns it or ends by it."""
    try:
        return main()
    except SystemExit as end:
        return end.code


def weights(out: Path, name: str = "model.pt") -> dict:
    return torch.load(out / name, weights_only=True)


def tiny_model(dtype=torch.float64, seed=0, **sizes) -> ARPG:
    """A model with weights of order one: its attention is peaked, so a wrong key changes the
    result."""
    sizes = {"dim": 24, "content_layers": 2, "query_layers": 3, "heads": 2, "ffn_hidden": 40,
             "vocab_size": 11, "num_classes": 3, "grid": (3, 5), "dropout": 0.0} | sizes
    torch.manual_seed(seed)
    model = ARPG(ModelConfig(**sizes)).to(dtype)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
        else:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    return model


class FakeIds:
    """The ids of pictures in some views. View 1 of a picture is its view 0 plus one, and so on."""

    def __init__(self, n=15, pictures=20, views=2, seed=0):
        first = np.random.default_rng(seed).integers(0, 11 + 1 - views, (pictures, 1, n))
        self.ids = (first + np.arange(views)[:, None]).astype(np.uint16)
        self.labels = np.arange(pictures) % 3

    def __len__(self):
        return len(self.labels)


def golden(name: str) -> tuple[dict, dict, dict]:
    """Read a golden file: its arrays, its configuration, and the released tensors by name, which
    the recipe fills."""
    arrays = dict(np.load(GOLDEN / name))
    meta = json.loads(str(arrays.pop("meta")))
    state = {n: torch.from_numpy(np.asarray(tensor(n, tuple(shape), meta["config"]["salt"])))
             for n, shape in meta["shapes"].items()}
    return {k: torch.from_numpy(v) for k, v in arrays.items()}, meta["config"], state


def golden_arpg() -> tuple[ARPG, dict, dict]:
    """The golden model, loaded like a released checkpoint, with the golden arrays and sizes."""
    arrays, config, released = golden("arpg_tiny.npz")
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"model": released}, Path(folder) / "arpg.pt")
        model = load_released_arpg(Path(folder) / "arpg.pt", grid=(config["grid"],) * 2,
                                   head_dim=config["dim"] // config["heads"])
    return model, arrays, config
