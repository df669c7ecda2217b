"""Hypothesis profiles: `--hypothesis-profile thorough` runs five times the examples."""

import os
import sys

os.environ.setdefault("GOMP_SPINCOUNT", "10000")                # as the package does, before torch

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

import sample_mini
from tests.helpers import TINY, run

settings.register_profile("thorough", max_examples=500)
threads = torch.get_num_threads()


def pytest_runtest_setup(item):
    """Products of 3×8 matrices only lose by being shared among threads, most of all on a machine
    that has other work."""
    torch.set_num_threads(1 if item.get_closest_marker("equivalence") else threads)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Two classes of twenty small pictures, one of them torn: tiny runs on them take seconds."""
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
    """A finished tiny run, started from another folder, and what it printed."""
    out = tmp_path_factory.mktemp("run") / "tiny"
    done = run("train_mini.py", "--data", pictures, "--side", 16, *TINY, "--out", out,
               "--device", "cpu", cwd=out.parent)
    return out, done


@pytest.fixture
def mistake(tmp_path, monkeypatch, capsys):
    """Call a script's `main` as from the empty folder `tmp_path`: it must end with code 2 and one
    line, which is returned. In this process: a new one spends seconds on importing torch."""
    def call(script, *arguments) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        try:
            code = script.main()
        except SystemExit as end:
            code = end.code
        said = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert code == 2 and len(said) == 1, said
        return said[0]
    return call


@pytest.fixture
def sample(tmp_path, monkeypatch):
    """Call `sample_mini.py` as from `tmp_path`, in this process; it must succeed."""
    def call(*arguments) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["sample_mini.py", *map(str, arguments)])
        assert sample_mini.main() == 0
    return call
