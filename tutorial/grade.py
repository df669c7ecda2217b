"""Grade a whole class: one folder per student, each with ch03_attention.py and so on.

    python -m tutorial.grade SUBMISSIONS                     every chapter of every student
    python -m tutorial.grade SUBMISSIONS --chapters 3,5 --csv grades.csv --solutions

A separate process grades each chapter of each student. It has a limit on time, and on Linux also
on memory and on the size of files. It runs in a temporary copy that holds the graders and one file
of answers, but no solutions and no answers of other students. It gets no input, and its output is
discarded. If it dies, its exercises are graded again one by one, so an endless function costs only
its own cell. When it ends, its process group is killed. On Linux all other processes that it
started are killed too, if they kept its environment.

This is no sandbox. Answers run under your account. Harmful code can read and write all files that
you can (by their full paths), use the network, fill the process table, and kill all your processes.
Grade strangers in a container or under a separate account.

Cheating: each run must end with a test that fails. This reveals answers that make `pytest.fail` or
all reports pass, and answers that end the run early. It does not reveal answers that patch only one
grader, read the expected values from the stack, or forge a report with that failure in it.
"""

import ast
import csv
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event

from tqdm import tqdm

from arpg_mini import UserError
from arpg_mini.run.command import Parser, exit_code

from .apart import LARGEST, NO_IMPORT, ROOT, run

SOLUTIONS = "(solutions)"
DIED = {"out of time": "killed after {:g} seconds",
        "crashed": "the process ended or was tampered with before its last test failed"}


def tests_of(grader: Path) -> tuple[str, dict[str, list[str]]]:
    """A grader's CHAPTER, and exercise -> its tests, without running the grader."""
    chapter, found = "", {}
    for node in ast.parse(grader.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "CHAPTER":
            chapter = node.value.value
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found.setdefault(node.name[5:].split("__")[0], []).append(node.name)
    return chapter, found


def grade(graders: Path, grader: str, answers: Path, options,
          stop: Event) -> dict[str, tuple[str, str]]:
    """Grade one chapter of one student: exercise -> (result, message)."""
    chapter, exercises = tests_of(graders / grader)
    if answers.is_symlink() or not answers.is_file() or answers.stat().st_size > LARGEST:
        return {name: ("missing", f"no {answers.name} of at most {LARGEST} bytes")
                for name in exercises}
    results = {}

    def fill(names: list[str]) -> None:
        wanted = [test for name in names for test in exercises[name]]
        died, found = run(graders, grader, chapter, answers, wanted, options, stop)
        for name in names:
            each = [found.get(test, ("crashed", "")) for test in exercises[name]]
            results[name] = (died, DIED[died].format(options.seconds)) if died else next(
                (one for one in each if one[0] != "passed"), each[0])
    try:
        fill(list(exercises))
        for name in exercises if len(exercises) > 1 else ():
            result, said = results[name]        # its own fault, or another exercise's?
            if result in DIED and NO_IMPORT not in said and not stop.is_set():
                fill([name])
    except OSError as error:                    # unreadable, or no room for the copy
        results = {name: ("crashed", f"not graded: {error}") for name in exercises}
    return results


def grade_all(submissions: Path, graders: Path, options) -> dict[tuple[str, str, str], tuple]:
    """(student, grader, exercise) -> (result, message). UserError if an option is wrong."""
    if not submissions.is_dir():
        raise UserError(f"{submissions}: no such folder")
    students = {folder.name: folder for folder in sorted(submissions.iterdir())
                if folder.is_dir() and not folder.name.startswith((".", "__"))}
    if not students:
        raise UserError(f"{submissions}: no submissions; it must hold a folder for each student")
    there = {int(f.stem[7:]): f.name for f in sorted(graders.glob("test_ch[0-9]*.py"))}
    if not there:
        raise UserError(f"--graders {graders}: holds no test_ch01.py or similar file")
    try:
        chapters = [int(c) for c in options.chapters.split(",")] if options.chapters else [*there]
        tasks = [there[c] for c in dict.fromkeys(chapters)]
    except (ValueError, KeyError):
        raise UserError(f"--chapters {options.chapters}: must be some of "
                        f"{','.join(map(str, there))}") from None
    for flag, least in (("seconds", 1), ("jobs", 1), ("gigabytes", 1)):
        if not getattr(options, flag) >= least:
            raise UserError(f"--{flag} {getattr(options, flag)}: must be {least} or more")
    if options.csv and (options.csv.is_dir() or not options.csv.absolute().parent.is_dir()):
        raise UserError(f"--csv {options.csv}: must be a file in a folder that exists")
    if options.solutions:
        students = {SOLUTIONS: graders.parent / "solutions"} | students
    results, stop = {}, Event()
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = {pool.submit(grade, graders, task, folder / f"{tests_of(graders / task)[0]}.py",
                               options, stop): (name, task)
                   for task in tasks for name, folder in students.items()}
        try:
            for future in tqdm(as_completed(futures), "grading", len(futures), unit="chapter"):
                name, task = futures[future]
                results |= {(name, task, one): what for one, what in future.result().items()}
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return {(name, task, one): results[name, task, one] for task in tasks for name in students
            for one in tests_of(graders / task)[1]}


def table(results: dict[tuple[str, str, str], tuple]) -> str:
    """A table for each chapter: a row for each student, a column for each exercise."""
    lines = []
    for task in dict.fromkeys(task for _, task, _ in results):
        rows: dict[str, dict[str, str]] = {}
        for (name, other, one), (result, _) in results.items():
            if other == task:
                rows.setdefault(name, {})[one] = result
        widths = {one: max(11, len(one)) + 2 for one in next(iter(rows.values()))}
        first = max(len(name) for name in [*rows, "chapter 00"]) + 2
        lines += ["", f"chapter {int(task[7:-3])}".ljust(first)
                  + "".join(one.ljust(width) for one, width in widths.items())]
        lines += ["".join(c if c.isprintable() else "?" for c in name).ljust(first)
                  + "".join(row[one].ljust(width) for one, width in widths.items())
                  for name, row in rows.items()]
    return "\n".join(line.rstrip() for line in lines[1:])


def write_csv(path: Path, results: dict[tuple[str, str, str], tuple]) -> None:
    """Write a line for each student and exercise. A spreadsheet takes no cell as a formula."""
    def plain(text: str) -> str:
        return "'" + text if text.startswith(("=", "+", "-", "@", "\t")) else text
    try:
        with open(path, "w", newline="", encoding="utf-8", errors="replace") as file:
            writer = csv.writer(file)
            writer.writerow(["student", "chapter", "exercise", "result", "said"])
            for (name, task, one), (result, said) in results.items():
                writer.writerow([plain(name), int(task[7:-3]), one, result, plain(said[:2000])])
    except OSError as error:
        raise UserError(f"--csv {path}: can't be written ({error.strerror})") from None


def main() -> int:
    parser = Parser("python -m tutorial.grade", description=__doc__.split("\n")[0])
    parser.add_argument("submissions", type=Path, help="folder of the students' folders")
    parser.add_argument("--chapters", help="only these, for example 3,5 (default: all)")
    parser.add_argument("--seconds", type=float, default=60, help="limit per chapter (default 60)")
    parser.add_argument("--gigabytes", type=int, default=4, help="memory per run (default 4)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default 2)")
    parser.add_argument("--csv", type=Path, help="file for the results and messages")
    parser.add_argument("--solutions", action="store_true", help="also grade the solutions, to "
                        "check the graders and this machine")
    parser.add_argument("--graders", type=Path, default=ROOT / "tutorial" / "exercises",
                        help="folder of test_ch01.py and so on (default: the tutorial's)")
    options = parser.parse_args()

    def work() -> None:
        results = grade_all(options.submissions, options.graders, options)
        print(table(results))
        if options.csv:
            write_csv(options.csv, results)
    return exit_code(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
