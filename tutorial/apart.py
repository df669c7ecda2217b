"""Run graders on unread answers in a separate process; see `grade.py`."""

import os
import secrets
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from pathlib import Path
from threading import Event

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 2**20                                 # bytes of an answers file; a report: 16 times that
NO_IMPORT = ": can't be imported: "              # part of conftest.py's message
# A process between this one and pytest. Answers that kill their parent kill only that process.
LAUNCH = """
import subprocess, sys
try:
    import resource
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]),) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**26,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, OSError, ValueError):
    pass
subprocess.call(sys.argv[2:])
"""


def stop_all(process: subprocess.Popen, mark: str) -> None:
    """Kill the process group of a run, and on Linux all processes with its mark."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"GRADED={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:                         # gone, or another user's
            pass


def verdict(case: xml.Element) -> tuple[str, str]:
    """The result of a test, from its entry in the report, and the message."""
    for child in case:
        message = child.get("message", "")
        said = message.removeprefix("Failed: ") if child.tag == "failure" else child.text or message
        if child.tag == "failure" and message.startswith("Failed: still to write"):
            return "not written", said
        if child.tag == "failure" and message.startswith(("Failed", "AssertionError")):
            return ("missing" if "; keep the names of the exercise" in said else
                    "crashed" if NO_IMPORT in said else "failed"), said
        if child.tag in ("failure", "error"):
            return "crashed", said
    return "passed", ""


def run(graders: Path, grader: str, chapter: str, answers: Path, tests: list[str], options,
        stop: Event) -> tuple[str, dict[str, tuple[str, str]]]:
    """Run some of a grader's tests in a copy. Returns why the run died ("" if it did not), and
    test -> verdict."""
    mark = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="grade-", ignore_cleanup_errors=True) as folder:
        top = Path(folder)
        rubbish = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / "arpg_mini", top / "arpg_mini", ignore=rubbish)
        shutil.copytree(graders, top / "tutorial" / "exercises", ignore=rubbish)
        for source, place in ((answers, f"answers/{chapter}.py"),
                              (ROOT / "tutorial" / "__init__.py", "tutorial/__init__.py")):
            (top / place).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, top / place)
        (top / "pytest.ini").write_text("[pytest]\n")
        with open(top / "tutorial" / "exercises" / grader, "a") as file:
            file.write(f"\n\ndef test_{mark}():\n    import pytest\n    pytest.fail('{mark}')\n")
        report = top / "report.xml"
        keep = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
                if name in os.environ}
        process = subprocess.Popen(
            [sys.executable, "-ISc", LAUNCH, str(options.gigabytes * 2**30),
             sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider",
             "--answers", "answers", "--junitxml", report.name,
             *(f"tutorial/exercises/{grader}::{test}" for test in (*tests, f"test_{mark}"))],
            cwd=top, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
            env=keep | {"GRADED": mark, "HOME": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1",
                        "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                        "PYTHONUSERBASE": site.getuserbase()})
        end = time.monotonic() + options.seconds
        try:
            while process.poll() is None and time.monotonic() < end and not stop.is_set():
                stop.wait(0.05)
            late = process.poll() is None
        finally:
            stop_all(process, mark)
        if late:
            return "out of time", {}
        try:
            if not report.is_file() or report.stat().st_size > 16 * LARGEST:
                return "crashed", {}
            found = {case.get("name"): verdict(case) for case in xml.parse(report).iter("testcase")}
        except (OSError, ValueError, LookupError, xml.ParseError):
            return "crashed", {}
    return ("" if found.pop(f"test_{mark}", ("", ""))[0] == "failed" else "crashed"), found
