"""The exercises: starters fail and say what to write, solutions pass, wrong answers are caught.

A wrong answer is a function in `tests/wrong_answers/CHAPTER.py` named EXERCISE__MISTAKE. It
replaces EXERCISE among the solutions. The grader's message must contain its docstring.
"""

import importlib
import inspect
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.helpers import ROOT
from tutorial.exercises.grading import attempt, expect, judge

CHAPTERS = sorted(f.stem for f in (ROOT / "tutorial" / "solutions").glob("ch*.py"))


def graders(chapter: str) -> dict[str, list]:
    """Exercise -> its tests: test_EXERCISE, or test_EXERCISE__WHAT."""
    module = importlib.import_module(f"tutorial.exercises.test_{chapter[:4]}")
    assert module.CHAPTER == chapter
    found: dict[str, list] = {}
    for name, test in vars(module).items():
        if name.startswith("test_"):
            found.setdefault(name[5:].split("__")[0], []).append(test)
    return found


def solution(chapter: str):
    return importlib.import_module(f"tutorial.solutions.{chapter}")


def starter(chapter: str):
    return importlib.import_module(f"tutorial.exercises.{chapter}")


def grade(tests: list, answers: SimpleNamespace) -> str:
    """The message of the first test that fails; "" if none fails."""
    for test in tests:
        try:
            test(lambda name: getattr(answers, name))
        except pytest.fail.Exception as failure:
            return str(failure)
    return ""


EXERCISES = [(chapter, name) for chapter in CHAPTERS for name in graders(chapter)]
WRONG = [(chapter, name, mistake) for chapter, name in EXERCISES
         for mistake in vars(importlib.import_module(f"tests.wrong_answers.{chapter}"))
         if mistake.startswith(name + "__")]


@pytest.mark.parametrize("chapter, name", EXERCISES)
def test_the_starter_says_what_to_write(chapter, name):
    said = grade(graders(chapter)[name], starter(chapter))
    assert said.startswith("still to write: ") and name in said and len(said) > 30


@pytest.mark.parametrize("chapter, name", EXERCISES)
def test_the_solution_passes(chapter, name):
    assert grade(graders(chapter)[name], solution(chapter)) == ""


def slower(wrong: list) -> list:
    """Wrong properties take seconds each: all but the first of an exercise are slow tests."""
    seen: set = set()
    return [pytest.param(chapter, name, mistake, marks=[pytest.mark.slow] * (
        name.startswith("check_") and (name in seen or bool(seen.add(name)))))
        for chapter, name, mistake in wrong]


@pytest.mark.parametrize("chapter, name, mistake", slower(WRONG))
def test_the_wrong_answer_is_rejected_for_the_stated_reason(chapter, name, mistake):
    wrong = getattr(importlib.import_module(f"tests.wrong_answers.{chapter}"), mistake)
    answers = SimpleNamespace(**vars(solution(chapter)) | {name: wrong})
    said = grade(graders(chapter)[name], answers)
    reason = " ".join(inspect.getdoc(wrong).split())
    assert reason in " ".join(said.split()), said or "accepted"


@pytest.mark.parametrize("chapter, name", EXERCISES)
def test_an_exercise_has_three_wrong_answers_and_a_complete_task(chapter, name):
    assert len([w for w in WRONG if w[:2] == (chapter, name)]) >= 3
    task = inspect.getdoc(getattr(starter(chapter), name))
    assert re.search(r"Minutes: \d+", task) and "Example" in task
    assert inspect.signature(getattr(starter(chapter), name)) == inspect.signature(
        getattr(solution(chapter), name))
    text, = (ROOT / "tutorial").glob(f"{chapter[2:4]}_*.md")
    section = re.search(rf"### Exercise [^\n]*`{name}`.*?(?=\n##|\Z)", text.read_text(), re.S)
    assert section, f"{text.name}: no '### Exercise … `{name}`'"
    assert "<details>" in section[0], f"{text.name}: no folded hint for {name}"


def test_every_wrong_answer_belongs_to_an_exercise():
    for chapter in CHAPTERS:
        module = importlib.import_module(f"tests.wrong_answers.{chapter}")
        for name in vars(module):
            assert "__" not in name.strip("_") or (chapter, name.split("__")[0]) in EXERCISES, name


@pytest.mark.parametrize("got, expected, right", [
    (0.1 + 0.2, 0.3, True), ([1, 0.1 + 0.2], [1, 0.3], True), (0.3001, 0.3, False),
    (1, 1.0, False), (10**9 + 1, 10**9, False), (True, 1, False), ("a", "a", True),
    ([0.3], (0.3,), False), ([0.3], [0.3, 0.3], False), (None, 0.3, False)])
def test_floats_may_be_off_by_rounding_and_nothing_else(got, expected, right):
    if right:
        return expect("f()", got, expected, "rounding")
    with pytest.raises(pytest.fail.Exception, match="call:     f()"):
        expect("f()", got, expected, "rounding")


def test_a_failure_shows_where_two_tensors_differ():
    got, expected = torch.arange(20.0), torch.arange(20.0)
    expected[13] = -1
    with pytest.raises(pytest.fail.Exception) as told:
        expect("f()", got, expected, "a slip")
    assert "[…, 13, 14" in str(told.value) and "[…, -1, 14" in str(told.value)


def leave(*_):
    raise SystemExit(3)


def test_an_answer_that_exits_fails_plainly(tmp_path):
    for work in (lambda: attempt("f()", leave), lambda: judge("check", leave, None, [])):
        with pytest.raises(pytest.fail.Exception, match="calls sys.exit"):
            work()
    (tmp_path / "ch03_attention.py").write_text("import sys\nsys.exit()\n")
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         "tutorial/exercises/test_ch03.py", "--answers", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True).stdout
    assert said.count("can't be imported: it calls sys.exit()") >= 5, said
    assert "Traceback" not in said and "AssertionError" not in said, said
