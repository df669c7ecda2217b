"""What graders say: call, got, expected, and what that usually means."""

import math
from collections.abc import Callable, Iterable

import pytest
import torch

EXITS = "the answer calls sys.exit(); take that out"


def show(value) -> str:
    """Short: a tensor by its shape and first numbers."""
    if isinstance(value, torch.Tensor):
        few = ", ".join(f"{x:.4g}" for x in value.detach().flatten()[:8].tolist())
        more = ", …" if value.numel() > 8 else ""
        return f"{str(value.dtype)[6:]} tensor of shape {tuple(value.shape)}: [{few}{more}]"
    text = repr(value)
    return text if len(text) < 200 else text[:200] + " …"


def attempt(call: str, work: Callable):
    """What `work()` returns; whatever it raises ends in one failure that names the call."""
    try:
        return work()
    except NotImplementedError as error:
        said = f"still to write: {error}"
    except SystemExit:
        said = f"call:     {call}\nraised:   SystemExit: {EXITS}"
    except Exception as error:
        said = f"call:     {call}\nraised:   {type(error).__name__}: {error}"
    pytest.fail(said, pytrace=False)        # out here, so that no chain of tracebacks is shown


def expect(call: str, got, expected, usually: str, tolerance: float = 1e-6) -> None:
    """Fail unless the two are equal: shapes and types too, floats within `tolerance`.

    usually: what such a failure mostly means.
    """
    if isinstance(expected, torch.Tensor):
        right = (isinstance(got, torch.Tensor) and got.shape == expected.shape
                 and got.is_floating_point() == expected.is_floating_point()
                 and torch.allclose(got.double(), expected.double(), tolerance, tolerance))
    else:
        right = same(got, expected, tolerance)
    if not right:
        if got is None:
            usually = "nothing was returned: is there a `return`?"
        fail(call, got, expected, usually)


def same(got, expected, tolerance: float) -> bool:
    """Floats within a relative `tolerance`, also in lists and tuples; all else exactly."""
    if isinstance(expected, float):
        return isinstance(got, float) and math.isclose(got, expected, rel_tol=tolerance,
                                                       abs_tol=1e-12)
    if type(got) is not type(expected):
        return False
    if isinstance(expected, (list, tuple)):
        return len(got) == len(expected) and all(
            same(a, b, tolerance) for a, b in zip(got, expected))
    return got == expected


def fail(call: str, got, expected, usually: str) -> None:
    pytest.fail(f"call:     {call}\ngot:      {show(got)}\nexpected: {show(expected)}\n"
                f"usually:  {usually}", pytrace=False)


def judge(name: str, check: Callable, right: Callable,
          broken: Iterable[tuple[str, Callable]]) -> None:
    """Grade a property that a student wrote: `check(implementation)` must accept the right one and
    raise AssertionError at every broken one. broken: (what is wrong with it, implementation)."""
    error = outcome(check, right)
    if isinstance(error, NotImplementedError):
        pytest.fail(f"still to write: {error}", pytrace=False)
    if error is not None:
        fail(f"{name}(a right implementation)", f"{type(error).__name__}: {error}", "no error",
             "the property asks for more than is true, or calls the implementation wrongly")
    for what, implementation in broken:
        error = outcome(check, implementation)
        call = f"{name}(an implementation that {what})"
        if error is None:
            fail(call, "no error", "AssertionError", "the property does not look at what goes "
                 f"wrong when an implementation {what}")
        # Of several assertions that fail, Hypothesis makes a group.
        if not all(isinstance(e, AssertionError) for e in getattr(error, "exceptions", [error])):
            fail(call, f"{type(error).__name__}: {error}", "AssertionError",
                 "say what must hold with assert; other errors don't count")


def outcome(check: Callable, implementation: Callable) -> BaseException | None:
    try:
        check(implementation)
    except SystemExit:
        return SystemExit(EXITS)
    except Exception as error:
        return error
