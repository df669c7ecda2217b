"""The pytest plugin of the systematic mutants: which test reaches which line of the package.

`--reach FILE` traces the tests and writes FILE. `--only FILE` runs the tests that FILE lists, in
its order. With either, Hypothesis draws the same examples every time and remembers no failure; a
trace, which is slow, takes a fifth of them. No process may take more than 12 GiB: a mutant may
never stop to ask for memory.
"""

import functools
import json
import resource
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import settings

from tests.helpers import ROOT

PACKAGE = ROOT / "arpg_mini"
PROCESS = ("a process", 0)                   # instead of a file and its line


def pytest_addoption(parser):
    parser.addoption("--reach", help="trace the tests, write this file")
    parser.addoption("--only", help="run the tests that this file lists, in its order")


def pytest_configure(config):
    settings.register_profile("mutants", database=None, derandomize=True, deadline=None,
                              max_examples=20 if config.option.reach else 100)
    settings.load_profile("mutants")
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30,) * 2)
    if config.option.reach:
        config.pluginmanager.register(Reach(Path(config.option.reach)))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    if config.option.only:
        names = json.loads(Path(config.option.only).read_text(encoding="utf-8"))
        place = {name: i for i, name in enumerate(names)}
        items[:] = sorted((item for item in items if item.nodeid in place),
                          key=lambda item: place[item.nodeid])


@functools.cache
def lines_of(code) -> frozenset[int]:
    return frozenset(line for *_, line in code.co_lines() if line)


def forget() -> None:
    """Empty the caches of the package and the tests: what one test cached, another must run too."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("arpg_mini", "tests") and name != __name__:
            for value in vars(module).values():
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()


class Reach:
    def __init__(self, file: Path):
        self.file, self.tests, self.unfit = file, {}, set()
        self.left: dict = {}                 # for each code object, its lines that have not run
        self.started: set[tuple[str, int]] = set()           # {PROCESS} once a process was started
        self.shared: dict[str, set] = {}     # what the fixtures of several tests reach
        sys.addaudithook(self.audit)

    def trace(self, frame, event, value):
        code = frame.f_code
        if not code.co_filename.startswith(str(PACKAGE)):
            return None
        if code not in self.left:
            self.left[code] = set(lines_of(code))
        self.left[code].discard(frame.f_lineno)
        frame.f_trace_lines = bool(self.left[code])          # faster once all lines have run
        return self.trace if self.left[code] else None

    def audit(self, event, _):
        if event == "subprocess.Popen":
            self.started.add(PROCESS)

    def reached(self) -> set[tuple[str, int]]:
        lines = {(Path(code.co_filename).relative_to(PACKAGE).as_posix(), line)
                 for code, left in self.left.items() for line in lines_of(code) - left}
        return lines | self.started

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        if fixturedef.scope == "function":
            return (yield)
        outer = self.left, self.started
        self.left, self.started = {}, set()
        try:
            return (yield)
        finally:
            self.shared[fixturedef.argname] = self.reached()
            self.left, self.started = outer

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        forget()
        self.left, self.started, began = {}, set(), time.perf_counter()
        threading.settrace(self.trace)
        sys.settrace(self.trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            reached = self.reached().union(*(self.shared.get(f, ()) for f in item.fixturenames))
            self.tests[item.nodeid] = {"seconds": time.perf_counter() - began,
                                       "reaches": sorted(reached)}

    def pytest_runtest_logreport(self, report):
        if not report.passed:
            self.unfit.add(report.nodeid)

    def pytest_sessionfinish(self):
        fit = {name: test for name, test in self.tests.items() if name not in self.unfit}
        self.file.write_text(json.dumps(fit), encoding="utf-8")
