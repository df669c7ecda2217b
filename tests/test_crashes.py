"""Never lose a run: killed at random moments, on a disk that fills up, it comes to the same end."""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import ROOT, weights

pytestmark = pytest.mark.slow

KILLS = 20


@pytest.fixture(scope="module")
def many_pictures(tmp_path_factory):
    """3,000 pictures: twelve parts of ids, so that encoding can be killed between and within."""
    root = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    for i in range(3000):
        (root / f"{i % 3}-class").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(
            root / f"{i % 3}-class" / f"{i}.png", compress_level=1)
    return root


def command(out, *arguments):
    return [sys.executable, str(ROOT / "train_mini.py"), "--device", "cpu", "--out", str(out),
            *map(str, arguments)]


def phase(out) -> str:
    """What a run that was just killed was doing, by what it left."""
    if list(out.glob("*.part")):
        return "saving"
    if (out / "model.pt").exists():
        return "training"
    if (out / "ids").exists():
        return "between" if (out / "ids" / "val.json").exists() else "encoding"
    return "tokenizer" if (out / "tokenizer.pt").exists() else "starting"


def first_start(out, data):
    return command(out, "--data", data, "--side", 16, "--steps", 300, "--tokenizer-steps", 40,
                   "--batch-size", 16, "--save-every", 15)


def wait_for_a_moment(process, out, rng, hit) -> None:
    """Until some time, drawn at random, after the first bar is shown, however long that takes; or a
    little after encoding begins, which is soon over, if no kill has met that yet."""
    while process.poll() is None and b"%" not in os.read(process.stderr.fileno(), 4096):
        pass
    end = time.monotonic() + rng.uniform(0.0, 2.5)
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)
        if "encoding" not in hit and phase(out) == "encoding":
            end = min(end, time.monotonic() + rng.uniform(0.0, 0.3))


def test_killed_twenty_times_it_ends_in_the_same_bits(many_pictures, tmp_path):
    """SIGKILL at moments drawn at random from the seconds a run works, resumed each time. Weights,
    average, optimizer and ids are bit for bit those of the run that nobody disturbed."""
    whole = tmp_path / "whole"
    assert subprocess.run(first_start(whole, many_pictures), capture_output=True).returncode == 0
    out, rng, kills, phases = tmp_path / "killed", random.Random(0), 0, {}
    while kills < KILLS or not (out / "samples.png").exists():
        arguments = first_start(out, many_pictures)
        if (out / "config.json").exists():
            arguments = command(out, "--resume", "--save-every", 15)
        process = subprocess.Popen(arguments, stderr=subprocess.PIPE, start_new_session=True)
        if kills < KILLS:
            wait_for_a_moment(process, out, rng, phases)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
                phases[phase(out)] = phases.get(phase(out), 0) + 1
        said = process.communicate()[1]
        assert process.returncode in (0, -signal.SIGKILL), said
        if process.returncode == 0 and kills < KILLS:   # too fast for us: begin once more
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
    """A disk of 100 MB at `path`, and functions that fill it and make room again. Who may not mount
    one gets a limit on the size of the run's files in its place."""
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
    """Something else takes the room while a run trains, and gives it back. The run says that it
    could not save, goes on, and ends in the same bits."""
    whole, out = tmp_path / "whole", tmp_path / "disk" / "run"
    subprocess.run(first_start(whole, many_pictures), capture_output=True, check=True)
    with small_disk(tmp_path / "disk") as (fill, make_room):
        process = subprocess.Popen(first_start(out, many_pictures), stderr=subprocess.PIPE,
                                   text=True)
        while not (out / "model.pt").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGSTOP)
        fill(process)
        process.send_signal(signal.SIGCONT)
        said = ""
        while "can't be written" not in said and process.poll() is None:
            said += process.stderr.read(1)
        make_room(process)
        said += process.communicate()[1]
        assert process.returncode == 0 and "going on, the newest checkpoint is of step" in said
        a, b = weights(whole), weights(out)
        assert all(torch.equal(a[k][name], b[k][name]) for k in ("model", "ema") for name in a[k])
        assert not list(out.rglob("*.part"))
