"""Tests of the tests: plausible mistakes, each with the property that must notice it.

A mutant is a small edit of the package's source. It is applied in memory while one property runs.
Each mutant is a mistake that somebody could make when writing ARPG. A good exercise: read one, and
guess what it breaks.

    python -m tests.mutants                 # the table: mutant, property, smallest counterexample
    python -m tests.mutants --diff causal   # the edits of mutants with "causal" in their name
"""

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, given, settings

Edit = tuple[object, str, str, str]          # owner, name of its function, old text, new text


class Mutant:
    """A mistake: its name, the property that must fail, and the edits that make the mistake."""

    def __init__(self, name: str, killer: Callable, *edits: Edit):
        self.name, self.killer, self.edits = name, killer, edits


def rewritten(owner: object, name: str, edits: list[tuple[str, str]]) -> object:
    """The function with its source edited. The source must contain each old text exactly once."""
    original = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(original))
    for old, new in edits:
        if source.count(old) != 1:
            raise LookupError(f"{source.count(old)} times in {owner.__name__}.{name}, not once: "
                              f"{old}\n(the package has changed: fix it, or the mutant's edit)")
        source = source.replace(old, new)
    module = sys.modules[inspect.unwrap(original).__module__]
    space: dict = {}
    exec(compile(source, f"<mutant of {name}>", "exec"), vars(module), space)
    return space[name]


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """Put the mistake into the package, in every module that has imported the function."""
    by_place: dict[tuple[object, str], list[tuple[str, str]]] = {}
    for owner, name, old, new in mutant.edits:
        by_place.setdefault((owner, name), []).append((old, new))
    with ExitStack() as stack:
        for (owner, name), edits in by_place.items():
            original, wrong = getattr(owner, name), rewritten(owner, name, edits)
            places = [owner] if inspect.isclass(owner) else [
                m for key, m in list(sys.modules.items())
                if key.split(".")[0] in ("arpg_mini", "tests") and vars(m).get(name) is original]
            for place in places:
                stack.enter_context(patch.object(place, name, wrong))
        yield


class Remembered:
    """Hypothesis' `data`. It also remembers what a property draws from it."""

    def __init__(self, data, drawn: dict):
        self.data, self.drawn = data, drawn

    def draw(self, strategy, label):
        self.drawn[label] = self.data.draw(strategy, label=label)
        return self.drawn[label]


@dataclass
class Kill:
    counterexample: dict                     # the quantities for which the property failed
    message: str                             # its assertion message

    def __str__(self) -> str:
        return "; ".join(repr(v) if k == "case" else f"{k} {getattr(v, '__name__', v)}"
                         for k, v in self.counterexample.items())


def kill(mutant: Mutant, shrink: bool = False) -> Kill | None:
    """Run the mutant's killer; None if the property still holds. A crash does not count."""
    drawn: dict = {}

    def claim(*values, **named):
        quantities = signature.bind(*values, **named).arguments
        drawn.clear()
        drawn.update({k: v for k, v in quantities.items() if k != "data"})
        if "data" in quantities:
            quantities["data"] = Remembered(quantities["data"], drawn)
        mutant.killer.claim(**quantities)

    claim.__signature__ = signature = inspect.signature(mutant.killer.claim)
    search = settings(max_examples=mutant.killer.examples, deadline=None, database=None,
                      derandomize=True, report_multiple_bugs=False,
                      phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
                      suppress_health_check=list(HealthCheck))
    with applied(mutant):
        try:
            search(given(**mutant.killer.quantities)(claim))()
        except AssertionError as failure:
            return Kill(dict(drawn), (str(failure) or "?").splitlines()[0])
    return None


def diff(mutant: Mutant) -> str:
    lines = [f"{mutant.name} (killed by {mutant.killer.__name__})"]
    for owner, name, old, new in mutant.edits:
        lines.append(f"  in {owner.__name__.split('.')[-1]}.{name}:")
        lines += [f"  - {line.strip()}" for line in old.splitlines()]
        lines += [f"  + {line.strip()}" for line in new.splitlines()]
    return "\n".join(lines)
