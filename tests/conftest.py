"""Shared fixtures. The option `--hypothesis-profile thorough` runs five times the examples, and
`--shuffle SEED` runs the tests in a random order, since none may depend on another."""

import json
import os
import random
import struct
import sys
import tempfile
from itertools import groupby

# Before torch: one thread. Several only slow down models this small, most of all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

import sample_mini
from tests.helpers import TINY, code_of, run

settings.register_profile("thorough", max_examples=500)


def pytest_addoption(parser):
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in a random order")
    parser.addoption("--jobs", type=int, default=os.cpu_count() if hasattr(os, "fork") else 1,
                     help="run the tests in so many processes (default: one per core)")


def pytest_collection_modifyitems(config, items):
    if (seed := config.getoption("--shuffle")) is not None:
        random.Random(seed).shuffle(items)


class Worker:
    """A copy of this process that runs tests. It writes their reports to a file, line by line."""

    def __init__(self, session, queue):
        self.file, config = tempfile.TemporaryFile("w+"), session.config
        self.pid, self.read, self.hook, self.config = os.fork(), 0, config.hook, config
        if not self.pid:
            code = 1
            try:
                capture = config.pluginmanager.getplugin("capturemanager")
                capture.stop_global_capturing()         # its file is the first process's
                capture.start_global_capturing()
                config.pluginmanager.unregister(name="terminalreporter")
                config.pluginmanager.register(self)
                run_chunks(session, queue)
                code = 0
            finally:
                os._exit(code)

    def pytest_runtest_logreport(self, report):
        data = self.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.file.write(json.dumps(data) + "\n"), self.file.flush()

    def report(self) -> None:
        """In the first process: pass on the reports that are new."""
        new = os.pread(self.file.fileno(), 2**30, self.read)
        new = new[:new.rfind(b"\n") + 1]
        self.read += len(new)
        for line in new.splitlines():
            self.hook.pytest_runtest_logreport(report=self.hook.pytest_report_from_serializable(
                config=self.config, data=json.loads(line)))


def run_chunks(session, queue, after=lambda: None) -> None:
    """Take chunks of tests from the queue, a pipe with two numbers for each, until it is empty."""
    def chunks():
        while numbers := os.read(queue, 8):
            yield from session.items[slice(*struct.unpack("II", numbers))]

    items = chunks()
    item = next(items, None)
    while item:
        following = next(items, None)           # its fixtures are kept
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        item = following
        after()


def pytest_runtestloop(session):
    """Run many tests in several processes. Each takes the next few tests of a file when it has
    finished its own."""
    jobs, option = session.config.getoption("--jobs"), session.config.option
    if (jobs < 2 or len(session.items) < 100 or option.collectonly or option.maxfail
            or option.usepdb):
        return None
    queue, fill = os.pipe()
    for _, group in groupby(range(len(session.items)), lambda i: (session.items[i].path, i // 12)):
        start, *rest = group
        os.write(fill, struct.pack("II", start, start + len(rest) + 1))
    os.close(fill)
    workers = [Worker(session, queue) for _ in range(jobs - 1)]
    try:
        run_chunks(session, queue, lambda: [worker.report() for worker in workers])
    finally:
        codes = [os.waitpid(worker.pid, 0)[1] for worker in workers]
        for worker in workers:
            worker.report()
    if any(codes):
        raise pytest.UsageError("a process that ran tests has ended early")
    if session.testsfailed:
        raise session.Failed(f"{session.testsfailed} tests failed")
    return True


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
