"""Each plausible mistake is noticed by the property that says what it breaks."""

import ast
import inspect

import pytest

from arpg_mini import decoding
from arpg_mini.model import ARPG
from tests import test_attention, test_equivalence, test_invariants, test_sampling
from tests.helpers import ROOT
from tests.mutants import Mutant, applied, diff, kill
from tests.mutants.__main__ import row
from tests.mutants.catalogue import MUTANTS

pytestmark = pytest.mark.equivalence

MODULES = test_equivalence, test_attention, test_sampling, test_invariants


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_the_mutant_is_killed(mutant):
    """The same property holds without the mistake (it is among the tests), so it is the mistake
    that it notices; and with a message, not a crash."""
    found = kill(mutant)
    assert found is not None, f"it survives:\n{diff(mutant)}"


def test_every_assertion_of_a_property_says_what_is_wrong():
    """A bare `assert` would leave the student and the table with nothing."""
    for module in MODULES:
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            assert not isinstance(node, ast.Assert) or node.msg, f"{module.__name__}:{node.lineno}"


def test_the_readme_shows_what_the_command_prints():
    readme = (ROOT / "README.md").read_text()
    assert f"makes {len(MUTANTS)} plausible mistakes" in readme
    shown = [m for m in MUTANTS if f"| {m.name} |" in readme]
    assert len(shown) == 2 and all(row(m) in readme for m in shown)


def test_every_property_kills_something():
    """A property that no mistake breaks may be saying nothing."""
    properties = {name for module in MODULES
                  for name, f in vars(module).items() if hasattr(f, "claim")}
    assert properties - {mutant.killer.__name__ for mutant in MUTANTS} == set()


def test_a_mutant_leaves_with_its_context_and_must_fit_the_source():
    swapped = next(m for m in MUTANTS if m.name == "the two halves swapped")
    before = decoding.guide, test_equivalence.guide, ARPG.forward
    with applied(swapped):
        assert decoding.guide is test_equivalence.guide is not before[0]
    assert (decoding.guide, test_equivalence.guide, ARPG.forward) == before
    with pytest.raises(LookupError, match="forward has 0 times: no such line"):
        with applied(Mutant("stale", swapped.killer, (ARPG, "forward", "no such line", ""))):
            pass
