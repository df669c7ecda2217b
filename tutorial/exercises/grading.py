"""The messages of the graders: call, got, expected, and what this usually means."""

import math
import traceback
from collections.abc import Callable, Iterable

import pytest
import torch

EXITS = "the answer calls sys.exit(); remove that call"


def show(value, start: int = 0) -> str:
    """Return a short text: for a tensor, its shape and eight of its numbers, from `start` on."""
    if isinstance(value, torch.Tensor):
        few = ", ".join(f"{x:.4g}" for x in value.detach().flatten()[start:start + 8].tolist())
        before, more = "…, " * (start > 0), ", …" * (value.numel() > start + 8)
        return f"{str(value.dtype)[6:]} tensor of shape {tuple(value.shape)}: [{before}{few}{more}]"
    text = repr(value)
    return text if len(text) < 200 else text[:200] + " …"


def attempt(call: str, work: Callable):
    """Return what `work()` returns. If it raises, fail with one message that names the call."""
    try:
        return work()
    except NotImplementedError as error:
        said = f"still to write: {error}"
    except SystemExit:
        said = f"call:     {call}\nraised:   SystemExit: {EXITS}"
    except Exception as error:
        said = f"call:     {call}\nraised:   {type(error).__name__}: {error}"
    pytest.fail(said, pytrace=False)        # outside `except`: no traceback chain


def expect(call: str, got, expected, usually: str, tolerance: float = 1e-6) -> None:
    """Fail unless both are equal, also in shape and type. Floats may differ by `tolerance`.

    usually: the most common reason for such a failure.
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
    """Compare floats with a relative `tolerance`, also in lists and tuples, all else exactly."""
    if isinstance(expected, float):
        return isinstance(got, float) and math.isclose(got, expected, rel_tol=tolerance,
                                                       abs_tol=1e-12)
    if type(got) is not type(expected):
        return False
    if isinstance(expected, (list, tuple)):
        return len(got) == len(expected) and all(
            same(a, b, tolerance) for a, b in zip(got, expected))
    return got == expected


def first_difference(got, expected) -> int:
    """Return where two tensors first differ visibly, or 0 if `show` shows that place anyway."""
    if not (isinstance(got, torch.Tensor) and isinstance(expected, torch.Tensor)
            and got.shape == expected.shape):
        return 0
    differ = ~torch.isclose(got.detach().double(), expected.detach().double(), rtol=1e-4, atol=1e-6)
    at = differ.flatten().nonzero()
    return int(at[0]) if len(at) and at[0] >= 8 else 0


def fail(call: str, got, expected, usually: str) -> None:
    start = first_difference(got, expected)
    pytest.fail(f"call:     {call}\ngot:      {show(got, start)}\n"
                f"expected: {show(expected, start)}\nusually:  {usually}", pytrace=False)


def judge(name: str, check: Callable, right: Callable,
          broken: Iterable[tuple[str, Callable]]) -> None:
    """Grade a property that a student wrote. `check(implementation)` must accept the right
    implementation and raise AssertionError for every broken one.

    broken: pairs (what is wrong with it, implementation).
    """
    error = outcome(check, right)
    if isinstance(error, NotImplementedError):
        pytest.fail(f"still to write: {error}", pytrace=False)
    if error is not None:
        line = traceback.extract_tb(error.__traceback__)[-1:] if not str(error) else []
        said = str(error) or "".join(f"at {frame.line}" for frame in line)
        fail(f"{name}(a right implementation)", f"{type(error).__name__}: {said}", "no error",
             "the property asks for more than is true, or calls the implementation wrongly")
    for what, implementation in broken:
        error = outcome(check, implementation)
        call = f"{name}(an implementation that {what})"
        if error is None:
            fail(call, "no error", "AssertionError", "the property does not look at what goes "
                 f"wrong when an implementation {what}")
        # If several assertions fail, Hypothesis raises them as a group.
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
