"""What graders say: call, got, expected, and what that usually means."""

from collections.abc import Callable, Iterable

import pytest
import torch


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
        pytest.fail(f"still to write: {error}", pytrace=False)
    except Exception as error:
        pytest.fail(f"call:     {call}\nraised:   {type(error).__name__}: {error}", pytrace=False)


def expect(call: str, got, expected, usually: str, tolerance: float = 1e-6) -> None:
    """Fail unless the two are equal: shapes and types too, numbers within `tolerance`.

    usually: what such a failure mostly means.
    """
    if isinstance(expected, torch.Tensor):
        right = (isinstance(got, torch.Tensor) and got.shape == expected.shape
                 and got.is_floating_point() == expected.is_floating_point()
                 and torch.allclose(got.double(), expected.double(), tolerance, tolerance))
    else:
        right = type(got) is type(expected) and got == expected
    if not right:
        fail(call, got, expected, usually)


def fail(call: str, got, expected, usually: str) -> None:
    pytest.fail(f"call:     {call}\ngot:      {show(got)}\nexpected: {show(expected)}\n"
                f"usually:  {usually}", pytrace=False)


def judge(name: str, check: Callable, right: Callable,
          broken: Iterable[tuple[str, Callable]]) -> None:
    """Grade a property that a student wrote: `check(implementation)` must accept the right one and
    raise AssertionError at every broken one. broken: (what is wrong with it, implementation)."""
    try:
        check(right)
    except NotImplementedError as error:
        pytest.fail(f"still to write: {error}", pytrace=False)
    except Exception as error:                          # AssertionError, or a mistake in the check
        fail(f"{name}(a right implementation)", f"{type(error).__name__}: {error}", "no error",
             "the property asks for more than is true, or calls the implementation wrongly")
    for what, implementation in broken:
        try:
            check(implementation)
        except AssertionError:
            continue
        except Exception as error:
            fail(f"{name}(an implementation that {what})", f"{type(error).__name__}: {error}",
                 "AssertionError", "say what must hold with assert; other errors don't count")
        fail(f"{name}(an implementation that {what})", "no error", "AssertionError",
             f"the property does not look at what goes wrong when an implementation {what}")
