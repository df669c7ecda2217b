"""Systematic mutants: every place of the package where a small mistake fits, one at a time.

    python -m tests.mutants --systematic orders --count 20 --seed 0
    python -m tests.mutants --systematic data/ids --count 20
    python -m tests.mutants --systematic run --count 20             # a folder; "all": the package

Each mutant is written into a copy of the checkout. There, pytest runs the tests that reach the
changed statement, the fastest first, until one fails. A survivor is a mistake that no test notices,
or a change without effect: a reader must decide.

Which tests reach a line is found by tracing the default tests of the files in RELATED. `build/`
keeps the traces of a test file until the package or that file changes. Tests that fail or skip
without a mutant are left out. Limits:

- Other test files than those in RELATED might notice a survivor.
- What runs in a subprocess is not traced. A line that no traced test reaches is tried with all
  tests that start a process.
- A line that runs on import counts as reached by all tests of the files in RELATED.
"""

import difflib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from tests.helpers import ROOT
from tests.mutants.places import KINDS, Mutation, mutations
from tests.mutants.reach import PROCESS

# Not here, even for "all": tests of texts and exercises, and test_mutants.py, whose edits must fit
# the package's source.
RELATED = {
    "attention": "attention model decoding exact equivalence invariants golden",
    "config": "model tokenizer training sampling evaluation plan commands flags",
    "control": "control equivalence",
    "data": "data ids files data_definition files_definition odd_pictures odd_folders",
    "decoding": "decoding exact equivalence sampling invariants replay golden",
    "editing": "editing control equivalence edit_scores",
    "exact": "exact",
    "measure": "bench count parallel evaluation edit_scores plan",
    "model": "model attention equivalence invariants control golden training",
    "orders": "orders decoding golden sampling equivalence invariants",
    "pretrained": "pretrained golden",
    "run": "runs commands files plan pretrained replay training training_definition "
           "run_definition flags drawing_definition odd_folders",
    "sampling": "sampling orders exact decoding equivalence invariants golden",
    "tokenizer": "tokenizer training training_definition golden pretrained",
    "training": "training training_definition run_definition invariants control"}


def diff(old: str, new: str) -> str:
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm=""))[2:]
    return "\n".join(f"  {line[0]} {line[1:].strip()}" for line in lines if line[0] in "-+")


def sources(room: str) -> dict[str, str]:
    """The files of a room, by their path in the package."""
    package = ROOT / "arpg_mini"
    place = package if room == "all" else package / room
    files = sorted(place.rglob("*.py")) or [Path(f"{place}.py")]
    return {file.relative_to(package).as_posix(): file.read_text(encoding="utf-8")
            for file in files if file.is_file()}


class Checkout:
    """A copy of the checkout, and which test reaches which line."""

    def __init__(self, folder: Path, room: str):
        self.folder, self.root = folder, folder / "checkout"
        ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").replace("/", "").split()
        shutil.copytree(ROOT, self.root, ignore=shutil.ignore_patterns(".git", *ignored))
        shared = [file for file in sorted(self.root.rglob("*.py"))
                  if file.is_relative_to(self.root / "arpg_mini")
                  or file.parent in (self.root, self.root / "tests") and file.name[:5] != "test_"]
        state = hashlib.sha256(b"".join(file.read_bytes() for file in shared))
        tests: dict[str, dict] = {}
        names = RELATED.get(room.split("/")[0], " ".join(RELATED.values()))
        for name in sorted(set(names.split())):
            now, file = state.copy(), self.root / "tests" / f"test_{name}.py"
            now.update(file.read_bytes())
            known = ROOT / "build" / f"reach-{name}-{now.hexdigest()[:16]}.json"
            if not known.exists():
                tqdm.write(f"tracing {file.name}", file=sys.stderr)
                self.test("--reach", folder / "reach.json", file)
                known.parent.mkdir(exist_ok=True)
                shutil.move(folder / "reach.json", known)
            tests |= json.loads(known.read_text(encoding="utf-8"))
        self.seconds = {name: test["seconds"] for name, test in tests.items()}
        self.reaches = {name: set(map(tuple, test["reaches"])) for name, test in tests.items()}

    def test(self, *arguments, limit: float | None = None) -> int | None:
        """pytest's exit code; None if it takes longer than `limit` seconds."""
        command = [sys.executable, "-m", "pytest", "-q", "--jobs", 1, "-p", "no:cacheprovider",
                   "-p", "tests.mutants.reach", "--basetemp", self.folder / "pytest", *arguments]
        # Without .pyc files: two mutants of one second and one size would share theirs.
        process = subprocess.Popen(
            list(map(str, command)), cwd=self.root, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"})
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def reaching(self, file: str, mutation: Mutation) -> list[str]:
        """The tests that may notice a mutation, the fastest first."""
        lines = {(file, line) for line in mutation.reach}
        found = [name for name, all_ in self.reaches.items() if mutation.imported or lines & all_]
        found = found or [name for name, all_ in self.reaches.items() if PROCESS in all_]
        return sorted(found, key=self.seconds.get)

    def outcome(self, file: str, source: str, tests: list[str]) -> str:
        if not tests:
            return "survived"
        (self.folder / "only.json").write_text(json.dumps(tests), encoding="utf-8")
        place = self.root / "arpg_mini" / file
        original = place.read_text(encoding="utf-8")
        place.write_text(source, encoding="utf-8")
        code = self.test("-x", "--only", self.folder / "only.json",
                         *sorted({name.split("::")[0] for name in tests}),
                         limit=10 * sum(map(self.seconds.get, tests)) + 60)
        place.write_text(original, encoding="utf-8")
        return {None: "timed out", 0: "survived", 5: "survived"}.get(code, "killed")


def campaign(room: str, count: int, seed: int) -> Iterator[str]:
    """Survivors, each as soon as it has run, and the table."""
    texts = sources(room)
    places = [(file, m) for file, text in texts.items() for m in mutations(text)]
    chosen = random.Random(seed).sample(places, min(count, len(places)))
    counts: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        checkout = Checkout(Path(folder), room)
        for file, mutation in tqdm(chosen, desc="mutants", leave=False):
            tests = checkout.reaching(file, mutation)
            outcome = checkout.outcome(file, mutation.source, tests)
            counts[mutation.kind, outcome] += 1
            if outcome == "survived":
                yield (f"arpg_mini/{file}:{mutation.line}: {mutation.kind}, {len(tests)} tests "
                       f"reach it\n{diff(texts[file], mutation.source)}")
    yield f"{len(chosen)} of {len(places)} places\n"
    yield "| kind | made | killed | timed out | survived |\n|---|--:|--:|--:|--:|"
    for kind in (*KINDS, "all"):
        row = [sum(n for key, n in counts.items() if kind in (key[0], "all") and key[1] == o)
               for o in ("killed", "timed out", "survived")]
        yield f"| {kind} | {sum(row)} | {' | '.join(map(str, row))} |"
