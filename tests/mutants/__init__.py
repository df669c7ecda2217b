"""Tests of the tests: plausible mistakes, each with the property that must notice it.

A mutant is a small edit of the package's source, applied in memory for as long as one property
runs. Each is a mistake somebody makes when writing ARPG; reading one and guessing what it breaks is
a good exercise.

    python -m tests.mutants                 # the table: mutant, property, smallest counterexample
    python -m tests.mutants --diff causal   # those with "causal" in the name, as edits
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
    """A mistake by name, the property that must fail, and the edits that make it."""

    def __init__(self, name: str, killer: Callable, *edits: Edit):
        self.name, self.killer, self.edits = name, killer, edits


def rewritten(owner: object, name: str, edits: list[tuple[str, str]]) -> object:
    """The function with its source edited; each old text must stand there exactly once."""
    original = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(original))
    for old, new in edits:
        if source.count(old) != 1:
            raise LookupError(f"{owner.__name__}.{name} has {source.count(old)} times: {old}\n"
                              "(the package has changed: mend it, or the mutant's edit)")
        source = source.replace(old, new)
    module = sys.modules[inspect.unwrap(original).__module__]
    space: dict = {}
    exec(compile(source, f"<mutant of {name}>", "exec"), vars(module), space)
    return space[name]


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """The package with the mistake in it, wherever the function was imported to."""
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
    """Hypothesis' `data`, keeping what a property draws from it."""

    def __init__(self, data, drawn: dict):
        self.data, self.drawn = data, drawn

    def draw(self, strategy, label):
        self.drawn[label] = self.data.draw(strategy, label=label)
        return self.drawn[label]


@dataclass
class Kill:
    counterexample: dict                     # what the property was about when it failed
    message: str                             # what it then said

    def __str__(self) -> str:
        return "; ".join(repr(v) if k == "case" else f"{k} {getattr(v, '__name__', v)}"
                         for k, v in self.counterexample.items())


def kill(mutant: Mutant, shrink: bool = False) -> Kill | None:
    """Run the mutant's killer against it; None if the property holds. A crash is no kill."""
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
