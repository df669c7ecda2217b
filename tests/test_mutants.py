"""For each plausible mistake, the property that describes what it breaks must fail. Systematic
mutants change one place of a file, and only tests that reach it are run."""

import ast
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from arpg_mini import decoding, orders
from arpg_mini.model import ARPG
from tests import (
    test_attention,
    test_data_definition,
    test_drawing_definition,
    test_equivalence,
    test_exact,
    test_files_definition,
    test_flags,
    test_invariants,
    test_orders,
    test_run_definition,
    test_sampling,
    test_training_definition,
)
from tests.helpers import ROOT
from tests.mutants import Mutant, applied, diff, kill, systematic
from tests.mutants.__main__ import row
from tests.mutants.places import KINDS, mutations
from tests.mutants.reach import PROCESS
from tests.mutants.rooms import ROOMS

ALL = sum(ROOMS.values(), [])
MODULES = (test_equivalence, test_attention, test_sampling, test_invariants, test_orders,
           test_exact, test_training_definition, test_run_definition, test_data_definition,
           test_files_definition, test_flags, test_drawing_definition)


def cases() -> Iterator:
    """All mutants. Those of slower rooms run in the slow run, and one in sixteen in every run."""
    fast, slow = [pytest.mark.equivalence], [pytest.mark.slow]
    for room, mutants in ROOMS.items():
        quick = room in ("model and decoding", "exact decoding")
        for i, mutant in enumerate(mutants):
            marks = fast if quick else slow if i % 16 else []
            yield pytest.param(mutant, id=mutant.name.replace(" ", "-"), marks=marks)


@pytest.mark.parametrize("mutant", cases())
def test_the_mutant_is_killed(mutant):
    """Broken if the property holds with this mistake, or crashes instead of giving a message.
    Without the mistake it holds: it is one of the tests."""
    found = kill(mutant)
    assert found is not None, f"the mutant survives:\n{diff(mutant)}"


def test_every_edit_fits_the_package():
    """Also those of the slow run. Broken if the package has changed and a mutant has not."""
    for mutant in ALL:
        with applied(mutant):
            pass


def test_every_assertion_of_a_property_says_what_is_wrong():
    """A bare `assert` would give no message to the student and to the table of mutants."""
    for module in MODULES:
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            assert not isinstance(node, ast.Assert) or node.msg, f"{module.__name__}:{node.lineno}"


def test_the_pages_show_what_the_command_prints():
    readme, page = ((ROOT / file).read_text() for file in ("README.md", "tutorial/measured.md"))
    assert f"in {len(ALL)} plausible ways" in readme and f"{len(ALL)} mistakes" in readme
    assert f"makes {len(ALL)} plausible mistakes" in page
    shown = [m for m in ALL if f"| {m.name} |" in page]
    assert len(shown) == 2 and all(row(m) in page for m in shown)
    for room, mutants in ROOMS.items():
        killers = len({mutant.killer for mutant in mutants})
        assert f"| {room} | {len(mutants)} | {len(mutants)} | {killers} |" in page


def test_every_property_kills_something():
    """A property that no mistake breaks may test nothing."""
    properties = {name for module in MODULES
                  for name, f in vars(module).items() if hasattr(f, "claim")}
    assert properties - {mutant.killer.__name__ for mutant in ALL} == set()


def test_a_mutant_ends_with_its_context_and_must_fit_the_source():
    swapped = next(m for m in ALL if m.name == "conditional and unconditional half swapped")
    before = decoding.guide, test_equivalence.guide, ARPG.forward
    with applied(swapped):
        assert decoding.guide is test_equivalence.guide is not before[0]
    assert (decoding.guide, test_equivalence.guide, ARPG.forward) == before
    with pytest.raises(LookupError, match="0 times in ARPG.forward, not once: no such line"):
        with applied(Mutant("stale", swapped.killer, (ARPG, "forward", "no such line", ""))):
            pass


@pytest.mark.parametrize("kind, line, mistakes", [
    ("operators", "a + b // -c", ["a - b // -c", "a + b * -c", "a + b // c"]),
    ("operators", "a & b & ~(c | d)", ["(a & b | ~(c | d))", "(a | b) & ~(c | d)",
                                       "a & b & (c | d)", "a & b & ~((c & d))"]),
    ("operators", "a and not (b or c)", ["(a or not (b or c))", "a and (b or c)",
                                         "a and not ((b and c))"]),
    ("operators", "a *= 'x' + b", ["a /= 'x' + b"]),
    ("comparisons", "0 < a <= b", ["0 <= a <= b", "0 < a < b"]),
    ("comparisons", "a in b != c.min(d)", ["a not in b != c.min(d)", "a in b == c.min(d)",
                                           "a in b != c.max(d)"]),
    ("constants", "a(0, 1, -7, 0.5, True)", ["a(1, 1, -7, 0.5, True)", "a(0, 0, -7, 0.5, True)",
                                             "a(0, 1, -8, 0.5, True)", "a(0, 1, -7, 1.5, True)",
                                             "a(0, 1, -7, 0.5, False)"]),
    ("constants", "a == 'up' or b in ('down', c) or 'left'",
     ["a == 'down' or b in ('down', c) or 'left'", "a == 'up' or b in ('up', c) or 'left'"]),
    ("arguments", "f(a, a, *b, deep=True)", ["f(a, *b, a, deep=True)", "f(a, a, *b)",
                                             "f(a, a, *b, deep=False)"]),
    ("statements", "def f():\n if a: return\n b.c = 1\n b.c -= 1\n d()\n return 1",
     ["def f():\n if True: return\n b.c = 1\n b.c -= 1\n d()\n return 1",
      "def f():\n if False: return\n b.c = 1\n b.c -= 1\n d()\n return 1",
      "def f():\n if a: pass\n b.c = 1\n b.c -= 1\n d()\n return 1",
      "def f():\n if a: return\n pass\n b.c -= 1\n d()\n return 1",
      "def f():\n if a: return\n b.c = 1\n pass\n d()\n return 1",
      "def f():\n if a: return\n b.c = 1\n b.c -= 1\n pass\n return 1"]),
    ("slices", "é[1:n, ::-1]", ["é[:n, ::-1]", "é[1:, ::-1]", "é[1:(n) + 1, ::-1]", "é[1:n, :]"]),
    ("axes", "a.sum(2) + cat(b, dim=-1) + c.sum(d)", ["a.sum(1) + cat(b, dim=-1) + c.sum(d)",
                                                      "a.sum(2) + cat(b, dim=-2) + c.sum(d)"])])
def test_all_mistakes_of_a_kind_are_made(kind, line, mistakes):
    found = [m.source for m in mutations(line) if m.kind == kind]
    assert sorted(found) == sorted(mistakes) and kind in KINDS


def test_texts_are_left_alone():
    assert mutations('''"""Two of 1 + 1."""
@cached(7)
def f(a: Annotated[int, 1 + 1]) -> Annotated[int, 2]:
    """Not 2 < 3."""
    b: Annotated[int, 1] = f"{a + 1}"
    print(a - 1, end="", flush=True)
    for c in tqdm(a, "bar", total=3, disable=not b):
        raise ValueError("at", c + 1)
    bar.update(1 + 1)

if __name__ == "__main__":
    f(1)
''') == []


def test_a_mutation_changes_one_place_of_a_file_that_still_compiles():
    source = inspect.getsource(orders)
    for mutation in mutations(source):
        compile(mutation.source, "orders.py", "exec")
        assert ast.dump(ast.parse(mutation.source)) != ast.dump(ast.parse(source))
        lines = systematic.diff(source, mutation.source).splitlines()
        assert 2 <= len(lines) <= 4 and source.splitlines()[mutation.line - 1].endswith(
            lines[0].removeprefix("  - ")) and mutation.line in mutation.reach


def test_a_seed_chooses_the_mutants(monkeypatch):
    class Survives(systematic.Checkout):
        def __init__(self, folder, room):
            self.seconds, self.reaches = {}, {}

        def outcome(self, file, source, tests):
            return "survived"

    monkeypatch.setattr(systematic, "Checkout", Survives)
    one, same, other = (list(systematic.campaign("orders", 4, seed)) for seed in (1, 1, 2))
    assert one == same != other and one[-1] == "| all | 4 | 0 | 0 | 4 |"
    assert len(set(one[:4])) == 4 and all("arpg_mini/orders.py:" in said for said in one[:4])


@pytest.mark.slow
def test_a_trace_names_the_tests_that_reach_a_line(tmp_path):
    (tmp_path / "test_it.py").write_text('''
import subprocess, sys, pytest
from arpg_mini.orders import step_sizes
@pytest.fixture(scope="module")
def sizes(): return step_sizes(4, 2, "constant")
def test_shares(sizes): pass
def test_shares_too(sizes): pass
def test_starts(): subprocess.run([sys.executable, "-c", ""])
def test_fails(): step_sizes(4, 5)
def test_is_not_chosen(): pass
''')
    names = [f"test_it.py::test_{name}" for name in ("fails", "starts", "shares_too", "shares")]
    (tmp_path / "only.json").write_text(json.dumps(names))
    subprocess.run([sys.executable, "-m", "pytest", "-p", "tests.mutants.reach", "-c", "/dev/null",
                    "--rootdir", tmp_path, "--only", tmp_path / "only.json", "--reach",
                    tmp_path / "reach.json", tmp_path], cwd=ROOT, capture_output=True)
    said = json.loads((tmp_path / "reach.json").read_text())
    assert list(said) == names[1:]
    lines, start = inspect.getsourcelines(orders.step_sizes)
    ran = [lines[line - start].strip() for _, line in said[names[2]]["reaches"]]
    assert "left = n - n * s // steps" in ran and not any("arccos\": " in line or "raise" in line
                                                          for line in ran)
    assert said[names[2]]["reaches"] == said[names[3]]["reaches"]
    assert said[names[1]]["reaches"] == [list(PROCESS)]
