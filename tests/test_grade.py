"""A class is graded cell by cell, whatever students hand in. A teacher's mistakes end in one line.
"""

import ast
import csv
import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tutorial import apart, grade

# Messages like those of `grading.py`, without importing torch, which takes seconds.
GRADER = '''
import pytest

CHAPTER = "ch01_sums"


def expect(call, work, expected):
    try:
        got = work()
    except NotImplementedError as error:
        pytest.fail(f"still to write: {error}", pytrace=False)
    except Exception as error:
        pytest.fail(f"call:     {call}\\nraised:   {error}", pytrace=False)
    if got != expected:
        pytest.fail(f"call:     {call}\\ngot:      {got}", pytrace=False)


def test_double(answers):
    expect("double(7)", lambda: answers("double")(7), 14)


def test_double__of_nothing(answers):
    expect("double(0)", lambda: answers("double")(0), 0)


def test_half(answers):
    expect("half(9)", lambda: answers("half")(9), 4.5)
'''
DOUBLE, HALF = "def double(x):\n    return 2 * x\n", "def half(x):\n    return x / 2\n"
STAYS = """
import os, time
if not os.fork():
    os.setsid()
    if os.fork():
        os._exit(0)
    open({beside!r}, "w").write(str(os.getpid()))
    time.sleep(600)
"""
# A submission -> what must be in its cells.
CLASS = {
    "perfect": (DOUBLE + HALF, "passed", "passed"),
    "untouched": ('def double(x):\n    raise NotImplementedError("double: write it")\n'
                  'def half(x):\n    raise NotImplementedError("half: write it")\n',
                  "not written", "not written"),
    "wrong": ("def double(x):\n    return x * x\ndef half(x):\n    return x // 2\n",
              "failed", "failed"),
    "wrong on nothing": ("def double(x):\n    return 2 * x or 1\n" + HALF, "failed", "passed"),
    "endless": ("def double(x):\n    while True:\n        pass\n" + HALF, "out of time", "passed"),
    "exits": ("import sys\ndef double(x):\n    sys.exit()\n" + HALF, "crashed", "passed"),
    "exits at once": ("import sys\nsys.exit()\n", "crashed", "crashed"),
    "exits for good": ("import os\ndef double(x):\n    os._exit(0)\n" + HALF, "crashed", "passed"),
    "syntax": ("def double(x:\n    return 2 * x\n", "crashed", "crashed"),
    "half done": (DOUBLE, "passed", "missing"),
    "raises": (DOUBLE + "def half(x):\n    return x / '2'\n", "passed", "failed"),
    "prints": (DOUBLE + "[print('=' * 2**20) for _ in range(400)]\n" + HALF, "passed", "passed"),
    "kills": ("import os, signal\nos.killpg(os.getpgid(os.getppid()), signal.SIGKILL)\n",
              "crashed", "crashed"),
    "patches": ("import pytest\npytest.fail = lambda *a, **k: None\n"
                "def double(x):\n    return 3\ndef half(x):\n    return 3\n", "crashed", "crashed"),
    "leaves": (STAYS + DOUBLE + HALF, "passed", "passed"),
    "reads": ("from tutorial.solutions.ch01_sums import double, half\n", "crashed", "crashed"),
    "nothing": (None, "missing", "missing"),
}
if sys.platform == "linux":
    CLASS["hungry"] = ("def double(x):\n    bytearray(2**34)\n    return 2 * x\n" + HALF,
                       "failed", "passed")


@pytest.fixture
def classroom(tmp_path):
    """A folder of submissions, and graders of one chapter with two exercises."""
    graders, solutions = tmp_path / "course" / "exercises", tmp_path / "course" / "solutions"
    graders.mkdir(parents=True), solutions.mkdir()
    for name in ("__init__.py", "conftest.py"):
        shutil.copy(ROOT / "tutorial" / "exercises" / name, graders)
    (graders / "test_ch01.py").write_text(GRADER)
    (solutions / "ch01_sums.py").write_text(DOUBLE + HALF)
    for name, (answers, *_) in CLASS.items():
        (tmp_path / "class" / name).mkdir(parents=True)
        if answers is not None:
            (tmp_path / "class" / name / "ch01_sums.py").write_text(
                answers.replace("{beside!r}", repr(str(tmp_path / "left"))))
    return tmp_path


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["grade", *map(str, arguments)])
    try:
        code = grade.main()
    except SystemExit as end:
        code = end.code
    out, error = capsys.readouterr()
    return code, out, error


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_a_class_is_graded_cell_by_cell(classroom, monkeypatch, capsys):
    """Whatever a student hands in, the others' cells stay correct, and nothing is left behind."""
    (classroom / "slow").mkdir()                # 4 seconds for these only: others may need more
    (classroom / "class" / "endless").rename(classroom / "slow" / "endless")
    before = {f: f.read_bytes() for f in classroom.rglob("*") if f.is_file()}
    out, lines = "", []
    for folder, seconds in (("class", 120), ("slow", 4)):
        code, printed, _ = call(monkeypatch, capsys, classroom / folder, "--graders",
                                classroom / "course" / "exercises", "--seconds", seconds,
                                "--csv", classroom / "grades.csv", "--jobs", 3,
                                *["--solutions"] * (folder == "class"))
        assert code == 0
        out += printed
        with open(classroom / "grades.csv", newline="") as file:
            lines += csv.DictReader(file)
    cells = {(line["student"], line["exercise"]): line["result"] for line in lines}
    expected = {(name, one): result for name, (_, *results) in CLASS.items()
                for one, result in zip(("double", "half"), results)}
    assert cells == expected | {(grade.SOLUTIONS, one): "passed"
                                for one in ("double", "half")}
    said = {(line["student"], line["exercise"]): line["said"] for line in lines}
    assert "call:     double(7)" in said["wrong", "double"]
    assert "SystemExit" in said["exits", "double"] and "write it" in said["untouched", "half"]
    assert "killed after 4 seconds" in said["endless", "double"]
    for name, (_, *results) in CLASS.items():
        row, = re.findall(rf"^{name}  +(.*)$", out, re.M)
        assert re.split("  +", row) == results
    if Path("/proc").is_dir():
        left = int((classroom / "left").read_text())
        time.sleep(0.2)
        assert not Path(f"/proc/{left}").exists() or "Z" in Path(f"/proc/{left}/stat").read_text()
    after = {f: f.read_bytes() for f in classroom.rglob("*") if f.is_file()}
    assert {f.name for f in after.keys() - before} <= {"grades.csv", "left"}
    assert before == {f: after[f] for f in before}


def test_a_table_of_more_than_one_chapter():
    cells = {("Ada", "test_ch01.py", "double"): ("passed", ""),
             ("Ada", "test_ch03.py", "a_long_name_of_one"): ("out of time", ""),
             ("Bo\x1b[31m", "test_ch01.py", "double"): ("failed", ""),
             ("Bo\x1b[31m", "test_ch03.py", "a_long_name_of_one"): ("missing", "")}
    assert grade.table(cells) == ("chapter 1   double\nAda         passed\nBo?[31m     failed\n\n"
                                  "chapter 3   a_long_name_of_one\nAda         out of time\n"
                                  "Bo?[31m     missing")


def test_no_cell_is_computed_by_a_spreadsheet(tmp_path):
    grade.write_csv(tmp_path / "grades.csv", {
        ("=1+1", "test_ch01.py", "double"): ("failed", "@cmd")})
    assert "'=1+1,1,double,failed,'@cmd" in (tmp_path / "grades.csv").read_text()


def test_a_teachers_mistakes_end_in_one_line(classroom, monkeypatch, capsys):
    submissions, graders = classroom / "class", classroom / "course" / "exercises"
    (classroom / "empty").mkdir()
    for arguments, says in (
            ([classroom / "none"], "none: no such folder"),
            ([classroom / "empty"], "empty: no submissions; it must hold a folder for each"),
            ([submissions, "--chapters", "1,12"], "--chapters 1,12: must be some of 1"),
            ([submissions, "--chapters", "one"], "--chapters one: must be some of 1"),
            ([submissions, "--seconds", "0"], "--seconds 0.0: must be 1 or more"),
            ([submissions, "--seconds", "nan"], "--seconds nan: must be 1 or more"),
            ([submissions, "--jobs", "0"], "--jobs 0: must be 1 or more"),
            ([submissions, "--csv", classroom / "none" / "x.csv"], "x.csv: must be a file in a"),
            ([submissions, "--graders", classroom / "empty"], "empty: holds no test_ch01.py")):
        code, _, error = call(monkeypatch, capsys, *["--graders", graders][:2 * (
            "--graders" not in arguments)], *arguments)
        assert code == 2 and says in error and error.count("\n") == 1, (arguments, error)


def test_graders_import_only_what_exists_where_they_run():
    """They run in a folder without solutions, figures and the package's tests."""
    for grader in (ROOT / "tutorial" / "exercises").glob("*.py"):
        for node in ast.walk(ast.parse(grader.read_text())):
            names = ([node.module or ""] if isinstance(node, ast.ImportFrom) else
                     [alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
            for name in names:
                assert name.split(".")[0] != "tests", (grader.name, name)
                assert not name.startswith(("tutorial.solutions", "tutorial.drawn")), grader.name


def test_linked_or_huge_answers_are_not_graded(classroom):
    """A link to another student's answers, or a file that is too large, counts as missing."""
    folder, graders = classroom / "class", classroom / "course" / "exercises"
    linked = folder / "nothing" / "ch01_sums.py"
    linked.symlink_to(folder / "perfect" / "ch01_sums.py")
    assert grade.grade(graders, "test_ch01.py", linked, None, None)["half"][0] == "missing"
    linked.unlink()
    with open(linked, "wb") as file:
        file.truncate(apart.LARGEST + 1)
    assert grade.grade(graders, "test_ch01.py", linked, None, None)["half"][0] == "missing"


@pytest.mark.slow
def test_the_solutions_pass_where_graders_run(tmp_path, monkeypatch, capsys):
    """They pass for every chapter, in the copy without solutions and figures. Starters are graded
    as "not written"."""
    shutil.copytree(ROOT / "tutorial" / "exercises", tmp_path / "class" / "untouched")
    code, _, _ = call(monkeypatch, capsys, tmp_path / "class", "--solutions", "--csv",
                      tmp_path / "grades.csv", "--seconds", 300)
    with open(tmp_path / "grades.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert code == 0 and len(lines) >= 8
    for line in lines:
        assert line["result"] == ("passed" if line["student"] == grade.SOLUTIONS
                                  else "not written"), line
