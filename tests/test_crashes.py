"""A run is never lost: killed at random moments, or on a full disk, it reaches the same result."""

import contextlib
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import ROOT, Copy, weights

pytestmark = pytest.mark.slow

PHASES = ["starting", "tokenizer", "encoding", "between", "training"]
WANTED = ["starting"] * 3 + ["tokenizer"] * 3 + ["encoding"] * 6 + ["training"] * 8
KILLS = len(WANTED)


@pytest.fixture(scope="module")
def many_pictures(tmp_path_factory):
    """3,000 pictures, so twelve parts of ids: encoding can be killed within and between parts."""
    root = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    for i in range(3000):
        (root / f"{i % 3}-class").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(
            root / f"{i % 3}-class" / f"{i}.png", compress_level=1)
    return root


def command(out, *arguments):
    return [str(ROOT / "train_mini.py"), "--device", "cpu", "--out", str(out),
            *map(str, arguments)]


def phase(out) -> str:
    """The phase that a run has reached, seen from the files in its folder."""
    if (out / "model.pt").exists():
        return "training"
    if (out / "ids").exists():
        return "between" if (out / "ids" / "val.json").exists() else "encoding"
    return "tokenizer" if (out / "tokenizer.pt").exists() else "starting"


def first_start(out, data):
    return command(out, "--data", data, "--side", 16, "--steps", 300, "--tokenizer-steps", 40,
                   "--batch-size", 16, "--save-every", 15)


def wait_for_a_moment(process, out, rng, wanted) -> None:
    """Wait until a progress bar is shown and the run has reached the phase `wanted`. Then wait for
    a random time."""
    end = math.inf
    while process.poll() is None and time.monotonic() < end:
        if (end == math.inf and "%" in process.said(process.err)
                and PHASES.index(phase(out)) >= PHASES.index(wanted)):
            end = time.monotonic() + rng.uniform(0.0, 0.3 if wanted == "encoding" else 1.0)
        time.sleep(0.01)


def test_killed_twenty_times_it_ends_in_the_same_bits(many_pictures, tmp_path):
    """A run gets SIGKILL at random moments in every phase, and is resumed each time. Weights,
    average, optimizer and ids are bit for bit those of a run without interruptions."""
    whole = tmp_path / "whole"
    assert Copy(first_start(whole, many_pictures)).end().returncode == 0
    out, rng, kills, phases = tmp_path / "killed", random.Random(0), 0, {}
    while kills < KILLS or not (out / "samples.png").exists():
        arguments = first_start(out, many_pictures)
        if (out / "config.json").exists():
            arguments = command(out, "--resume", "--save-every", 15)
        process = Copy(arguments)
        if kills < KILLS:
            wait_for_a_moment(process, out, rng, WANTED[kills])
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
                doing = "saving" if list(out.glob("*.part")) else phase(out)
                phases[doing] = phases.get(doing, 0) + 1
        done = process.end()
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        if done.returncode == 0 and kills < KILLS:   # finished too early: start again
            shutil.rmtree(out)
    print(f"killed while {phases}")
    assert {"encoding", "training"} <= set(phases)
    for name in ("train.npy", "train.labels.npy", "val.npy", "val.labels.npy"):
        assert (out / "ids" / name).read_bytes() == (whole / "ids" / name).read_bytes()
    a, b = weights(whole), weights(out)
    for kind in ("model", "ema"):
        assert all(torch.equal(a[kind][name], b[kind][name]) for name in a[kind])
    for name, state in a["optimizer"]["state"].items():
        assert all(torch.equal(state[k], b["optimizer"]["state"][name][k]) for k in state)
    assert not list(out.rglob("*.part")) and a["best"] == b["best"]


@contextlib.contextmanager
def small_disk(path):
    """A disk of 100 MB at `path`, and functions that fill it and free its space. A user who may not
    mount a disk gets a limit on the size of the run's files instead."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        def limit(process, size):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        yield lambda p: limit(p, 2**20), lambda p: limit(p, resource.RLIM_INFINITY)
        return

    def fill(process):
        with open(path / "hog", "wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16)), file.flush()

    try:
        yield fill, lambda process: (path / "hog").unlink()
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_disk_that_is_full_for_a_while(many_pictures, tmp_path):
    """Another file fills the disk while a run trains, and is then deleted. The run prints that it
    could not save, keeps training, and ends with the same bits."""
    whole, out = tmp_path / "whole", tmp_path / "disk" / "run"
    assert Copy(first_start(whole, many_pictures)).end().returncode == 0
    with small_disk(tmp_path / "disk") as (fill, make_room):
        process = Copy(first_start(out, many_pictures))
        while not (out / "model.pt").exists():
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGSTOP)
        fill(process)
        os.kill(process.pid, signal.SIGCONT)
        while "can't be written" not in process.said(process.err) and process.poll() is None:
            time.sleep(0.02)
        make_room(process)
        done = process.end()
        assert done.returncode == 0
        assert "training continues, the newest checkpoint is of step" in done.stderr
        a, b = weights(whole), weights(out)
        assert all(torch.equal(a[k][name], b[k][name]) for k in ("model", "ema") for name in a[k])
        assert not list(out.rglob("*.part"))
