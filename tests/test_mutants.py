"""For each plausible mistake, the property that describes what it breaks must fail."""

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
    """Broken if the property holds with this mistake, or crashes instead of giving a message.
    Without the mistake it holds: it is one of the tests."""
    found = kill(mutant)
    assert found is not None, f"the mutant survives:\n{diff(mutant)}"


def test_every_assertion_of_a_property_says_what_is_wrong():
    """A bare `assert` would give no message to the student and to the table of mutants."""
    for module in MODULES:
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            assert not isinstance(node, ast.Assert) or node.msg, f"{module.__name__}:{node.lineno}"


def test_the_pages_show_what_the_command_prints():
    readme, page = ((ROOT / file).read_text() for file in ("README.md", "tutorial/measured.md"))
    assert f"in {len(MUTANTS)} plausible ways" in readme and f"{len(MUTANTS)} mistakes" in readme
    assert f"makes {len(MUTANTS)} plausible mistakes" in page
    shown = [m for m in MUTANTS if f"| {m.name} |" in page]
    assert len(shown) == 2 and all(row(m) in page for m in shown)


def test_every_property_kills_something():
    """A property that no mistake breaks may test nothing."""
    properties = {name for module in MODULES
                  for name, f in vars(module).items() if hasattr(f, "claim")}
    assert properties - {mutant.killer.__name__ for mutant in MUTANTS} == set()


def test_a_mutant_ends_with_its_context_and_must_fit_the_source():
    swapped = next(m for m in MUTANTS if m.name == "conditional and unconditional half swapped")
    before = decoding.guide, test_equivalence.guide, ARPG.forward
    with applied(swapped):
        assert decoding.guide is test_equivalence.guide is not before[0]
    assert (decoding.guide, test_equivalence.guide, ARPG.forward) == before
    with pytest.raises(LookupError, match="0 times in ARPG.forward, not once: no such line"):
        with applied(Mutant("stale", swapped.killer, (ARPG, "forward", "no such line", ""))):
            pass
