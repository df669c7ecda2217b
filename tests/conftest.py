"""Shared fixtures. The option `--hypothesis-profile thorough` runs five times the examples, and
`--shuffle SEED` runs the tests in a random order, since none may depend on another."""

import os
import random
import sys

os.environ.setdefault("GOMP_SPINCOUNT", "10000")                # like the package, before torch

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

import sample_mini
from tests.helpers import TINY, code_of, run

settings.register_profile("thorough", max_examples=500)
threads = torch.get_num_threads()


def pytest_addoption(parser):
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in a random order")


def pytest_collection_modifyitems(config, items):
    if (seed := config.getoption("--shuffle")) is not None:
        random.Random(seed).shuffle(items)


def pytest_runtest_setup(item):
    """Run equivalence tests on one thread. Several threads only slow down products of 3×8 matrices,
    most of all on a busy machine."""
    torch.set_num_threads(1 if item.get_closest_marker("equivalence") else threads)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Two classes of twenty small pictures, and a damaged file. Tiny runs on them take seconds."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (20, 24, 3)).astype(np.uint8)).save(
                root / name / f"{i}.png")
    (root / "dog" / "broken.png").write_bytes(b"\x89PNG")
    return root


@pytest.fixture(scope="session")
def finished(pictures, tmp_path_factory):
    """The folder of a finished tiny run, started from another folder, and what the run printed."""
    out = tmp_path_factory.mktemp("run") / "tiny"
    done = run("train_mini.py", "--data", pictures, "--side", 16, *TINY, "--out", out,
               "--device", "cpu", cwd=out.parent)
    return out, done


@pytest.fixture
def mistake(tmp_path, monkeypatch, capsys):
    """Call a script's `main` in the empty folder `tmp_path`. It must end with code 2 and one error
    line; return this line. It runs in this process: a new one needs seconds to import torch."""
    def call(script, *arguments) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        code = code_of(script.main)
        said = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert code == 2 and len(said) == 1, said
        return said[0]
    return call


@pytest.fixture
def sample(tmp_path, monkeypatch):
    """Call `sample_mini.py` in the folder `tmp_path`, in this process. It must succeed."""
    def call(*arguments) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["sample_mini.py", *map(str, arguments)])
        assert sample_mini.main() == 0
    return call
