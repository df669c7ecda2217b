"""Graders of chapter 9."""

import re

import torch
from torch import Tensor

from tutorial.exercises.grading import attempt, expect, fail, judge

CHAPTER = "ch09_measuring"


def features(n: int, d: int, seed: int) -> Tensor:
    """(n, d) float32: correlated features with different spreads and means."""
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(n, d, generator=g) @ torch.randn(d, d, generator=g)
            + 2 * torch.randn(d, generator=g))


def moments(x: Tensor, centre: int = 0, less: int = 1) -> tuple[Tensor, Tensor]:
    """Mean and covariance. The arguments `centre` and `less` can make common mistakes."""
    apart = x.double() - x.double().mean(centre, keepdim=True)
    return x.double().mean(0), apart.T @ apart / (len(x) - less)


def square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def formula(m: Tensor, c: Tensor, n: Tensor, k: Tensor, means=None, cross=None) -> float:
    """The distance, from the eigenvalues of the product. Its parts can be replaced."""
    means = (m - n).square().sum() if means is None else means
    if cross is None:
        cross = torch.linalg.eigvals(c @ k).real.clamp(min=0).sqrt().sum()
    return float(means + c.trace() + k.trace() - 2 * cross)


def misconceptions(x: Tensor, y: Tensor) -> dict[str, float]:
    """Common mistake -> the number that it gives."""
    (m, c), (n, k) = moments(x), moments(y)
    roots = square_root(c), square_root(k)
    return {
        "the trace of C C' itself: the square root of the matrix is missing":
            formula(m, c, n, k, cross=(c @ k).trace()),
        "a root of every entry of C C': the square root of a matrix is R with R R = C C'":
            formula(m, c, n, k, cross=(c @ k).diagonal().clamp(min=0).sqrt().sum()),
        "eigh needs a symmetric matrix and reads one triangle; C C' is not symmetric":
            formula(m, c, n, k, cross=torch.linalg.eigvalsh(c @ k).clamp(min=0).sqrt().sum()),
        "each feature on its own: entries off the diagonals of C and C' count too":
            formula(m, c.diagonal().diag(), n, k.diagonal().diag()),
        "standard deviations instead of covariances":
            formula(m, roots[0], n, roots[1]),
        "the means are missing": formula(m, c, n, k, means=0.0),
        "the distance of the means was not squared":
            formula(m, c, n, k, means=(m - n).norm()),
        "there is a root at the end: the distance must stay squared":
            formula(m, c, n, k) ** 0.5,
        "tr(C^½ C'^½), which is the trace of (C C')^½ only if C C' = C' C":
            formula(m, c, n, k, cross=(roots[0] @ roots[1]).trace()),
        "second moments about the origin: a covariance is about the mean": uncentred(x, y),
        "the cross term occurs once: it must count twice": formula(
            m, c, n, k, cross=torch.linalg.eigvals(c @ k).real.clamp(min=0).sqrt().sum() / 2),
        "each row was centred at its own mean: the mean is over pictures, not over features":
            formula(m, moments(x, 1)[1], n, moments(y, 1)[1]),
        "divided by n: the covariance of a sample is divided by n - 1":
            formula(m, moments(x, less=0)[1], n, moments(y, less=0)[1]),
    }


def usual(got: float, x: Tensor, y: Tensor, otherwise: str) -> str:
    """The mistake that gives this number; else `otherwise`."""
    return next((what for what, value in misconceptions(x, y).items()
                 if abs(got - value) < 1e-4 * (1 + abs(value))), otherwise)


BY_HAND = "compute m, C and tr((C C')^½) of the task's example by hand, and compare"


def test_frechet_distance(answers):
    x, y = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [4.0], [8.0]])
    cases = [("one feature", x, y), ("two features", features(6, 2, 3), features(9, 2, 4)),
             ("five features", features(30, 5, 5), features(23, 5, 6))]
    for name, x, y in cases:
        call = f"frechet_distance({name}: {tuple(x.shape)}, {tuple(y.shape)})"
        got = attempt(call, lambda: answers("frechet_distance")(x.clone(), y.clone()))
        expected = formula(*moments(x), *moments(y))
        if not isinstance(got, float):
            fail(call, got, expected, "the result must be a float: .item() or float()")
        if not abs(got - expected) < 1e-4 * (1 + abs(expected)):
            fail(call, got, expected, usual(got, x, y, BY_HAND))


def test_frechet_distance__of_few_pictures(answers):
    """Fewer pictures than features: singular covariances."""
    for n, k, d in ((4, 5, 9), (7, 3, 6)):
        x, y = features(n, d, n), features(k, d, k)
        call = f"frechet_distance({(n, d)}, {(k, d)})"

        def work():
            try:
                return answers("frechet_distance")(x, y)
            except torch.linalg.LinAlgError as error:       # of a matrix of nan
                return error
        got, expected = attempt(call, work), formula(*moments(x), *moments(y))
        if isinstance(got, Exception) or not abs(got - expected) < 1e-3 * expected:
            clamp = ("eigenvalues that should be 0 are slightly negative, and their square root "
                     "is nan: clamp them")
            number = not isinstance(got, Exception) and got == got
            fail(call, got, expected, usual(got, x, y, BY_HAND) if number else clamp)


def test_frechet_distance__far_from_the_origin(answers):
    x, y = features(30, 3, 8).round() + 6000, features(40, 3, 9).round() + 6001
    call = "frechet_distance((30, 3), (40, 3)), whole numbers about 6,000"
    got = attempt(call, lambda: answers("frechet_distance")(x, y))
    expected = formula(*moments(x), *moments(y))
    if not abs(got - expected) < 1e-6 * expected:
        small = "float32 has seven digits, too few for means so large: use .double() first"
        fail(call, got, expected, usual(got, x, y, small if abs(got - expected) < 0.01 * expected
                                        else BY_HAND))


SIZES = {"attn_norm.weight": (6,), "attn.to_q.weight": (4, 6), "attn.to_k.weight": (4, 6),
         "attn.to_v.weight": (4, 6), "attn.proj.weight": (6, 4), "ffn_norm.weight": (6,),
         "ffn.w1.weight": (5, 6), "ffn.w3.weight": (5, 6), "ffn.w2.weight": (6, 5)}
OURS = {"attention_norm.gain": ("attn_norm",), "attention.out.weight": ("attn.proj",),
        "attention.qkv.weight": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "ffn_norm.gain": ("ffn_norm",), "ffn.w2.weight": ("ffn.w2",),
        "ffn.w13.weight": ("ffn.w1", "ffn.w3")}


def checkpoint(blocks=(3, 0, 10)) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of some blocks, under released names and under ours; no two numbers are equal."""
    g = torch.Generator().manual_seed(11)
    theirs, ours = {}, {}
    for i in blocks:
        block = {name: torch.randn(size, generator=g) for name, size in SIZES.items()}
        theirs |= {f"layers.self_dec.{i}.{name}": tensor for name, tensor in block.items()}
        ours |= {f"content.{i}.{name}": torch.cat([block[f"{part}.weight"] for part in parts])
                 for name, parts in OURS.items()}
    return theirs, ours


def compare(call: str, got: dict, expected: dict) -> None:
    """Compare names, then shapes, then numbers; say what each difference usually means."""
    if not isinstance(got, dict):
        fail(call, got, "a dict", "return a new dict; state itself does not change")
    if set(got) != set(expected):
        many, missing = sorted(set(got) - set(expected)), sorted(set(expected) - set(got))
        numbers, right = ({n for name in names for n in re.findall(r"\.(\d+)\.", str(name))}
                          for names in (got, expected))
        fail(call, f"{len(many)} wrong names: {', '.join(map(str, many[:3]))}" if many else
             "no wrong name", f"{len(missing)} more: {', '.join(missing[:3])}" if missing else
             "none of these", "every block number, with one digit or more"
             if numbers != right else "every line of the table, for each block, and nothing else")
    for name, right in expected.items():
        one, usually = got[name], "a tensor under the name of another tensor"
        if one.ndim == 2 and one.shape != right.shape and one.T.shape == right.shape:
            usually = "weights are (outputs, inputs) on both sides: nothing is transposed"
        elif one.shape != right.shape:
            usually = "tensors are stacked row under row: cat and chunk along the first axis"
        elif not torch.equal(one, right) and "w13" in name:
            usually = "w1 comes first: silu is applied to the first half of w13 x, which is w1 x"
        elif not torch.equal(one, right) and "qkv" in name:
            usually = "all rows of q, then all of k, then all of v"
        elif not torch.equal(one, right) and ".to_" in name:
            usually = "the first third of the rows is q, the second is k, the last is v"
        expect(f"{call}[{name!r}]", one, right, usually, 0.0)


def test_rename(answers):
    theirs, ours = checkpoint()
    call = "rename(state of blocks 3, 0, 10)"
    compare(call, attempt(call, lambda: answers("rename")(dict(theirs))), ours)


def test_rename__back(answers):
    theirs, ours = checkpoint()
    call = "rename(state in our names, back=True)"
    compare(call, attempt(call, lambda: answers("rename")(dict(ours), back=True)), theirs)


def test_rename__of_what_has_no_place(answers):
    theirs, ours = checkpoint((2,))
    for state, back, name in ((theirs, False, "layers.self_dec.2.attn.bias"),
                              (theirs, False, "layers.cross_dec.2.attn.proj.weight"),
                              (ours, True, "content.2.attention.extra.weight")):
        call = f"rename(state with {name!r} in it, back={back})"

        def work():
            try:
                return answers("rename")(state | {name: torch.ones(2)}, back=back)
            except KeyError as error:
                return error
        got = attempt(call, work)
        if not isinstance(got, KeyError):
            fail(call, "no error", "KeyError", "if a tensor is dropped without an error, the model "
                 "is not the one in the file")
        if name not in str(got):
            fail(call, repr(got), f"KeyError that names {name}", "say which tensor has no place")


def test_rename__leaves_its_argument_alone(answers):
    theirs, _ = checkpoint((1,))
    before = {name: tensor.clone() for name, tensor in theirs.items()}
    attempt("rename(state)", lambda: answers("rename")(theirs))
    if list(theirs) != list(before) or not all(torch.equal(theirs[n], before[n]) for n in before):
        fail("rename(state), then look at state", sorted(theirs)[:3], sorted(before)[:3],
             "pop from a copy: the caller's dict was changed")


def right(x: Tensor, y: Tensor) -> float:
    return formula(*moments(x), *moments(y))


def uncentred(x: Tensor, y: Tensor) -> float:
    """The distance with second moments instead of covariances."""
    a, b = (z.double().T @ z.double() / (len(z) - 1) for z in (x, y))
    return formula(x.double().mean(0), a, y.double().mean(0), b)


def part(name: str):
    return lambda x, y: next(v for what, v in misconceptions(x, y).items() if what.startswith(name))


BROKEN = [
    ("leaves out the means", part("the means")),
    ("does not square the distance of the means", part("the distance")),
    ("looks at each feature on its own", part("each feature")),
    ("uses second moments about the origin instead of covariances", uncentred),
    ("uses the trace of C C' instead of that of its root", part("the trace")),
    ("adds 1", lambda x, y: 1 + right(x, y)),
    ("gives another number when the sets are exchanged",
     lambda x, y: float((moments(x)[0] - moments(y)[0]).square().sum()
                        + moments(y)[1].trace() * (right(x, y) > 1e-6)
                        * (not torch.allclose(moments(x)[1], moments(y)[1])))),
    ("depends on where the origin is", lambda x, y: right(x, y) + float(
        (moments(x)[1].trace() - moments(y)[1].trace()).abs()
        * (moments(x)[0] + moments(y)[0]).norm())),
]


def test_check_distance(answers):
    judge("check_distance", answers("check_distance"), right, BROKEN)


def test_standard_error(answers):
    cases = [([1, 1, 1, 0, 1], [1, 0, 1, 0, 1]), ([0, 1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 1, 0, 0]),
             ([1, 1, 0, 1, 1, 1, 0, 1, 1, 0, 1], [1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 1])]
    for a, b in cases:
        call = f"standard_error({a}, {b}), as bool"
        first, second = torch.tensor(a).bool(), torch.tensor(b).bool()
        got = attempt(call, lambda: answers("standard_error")(first, second))
        apart, n = first.double() - second.double(), len(a)
        expected = float(apart.std() / n ** 0.5)
        p, q = first.double().mean(), second.double().mean()
        if not isinstance(got, float):
            fail(call, got, expected, "the result must be a float: .item() or float()")
        for value, what in (
                (((first.double().var() + second.double().var()) / n).sqrt(),
                 "as if the pictures were independent: a picture that both settings get right "
                 "cancels in the difference"),
                (((p * (1 - p) + q * (1 - q)) / n) ** 0.5, "as if the pictures were independent: "
                 "a picture that both settings get right cancels in the difference"),
                ((2 * p * (1 - p) / n) ** 0.5, "as if the pictures were independent: √2 times the "
                 "error of one share. Here they come in pairs"),
                (apart.std() / n, "divided by n: the deviation of a mean of n is √n times smaller"),
                (apart.std(), "the deviation of one difference; that of the mean of n is √n times "
                 "smaller"),
                (apart.var() / n, "the variance of the mean: the task asks for its square root"),
                (apart.std(correction=0) / n ** 0.5, "divided by n: the differences are a sample, "
                 "so divide by n - 1"),
                (apart.abs().std() / n ** 0.5, "the sign was lost: a difference may be -1")):
            if abs(got - expected) > 1e-6 and abs(got - float(value)) < 1e-6:
                fail(call, got, expected, what)
        if not abs(got - expected) < 1e-6:
            fail(call, got, expected, "compute first - second as numbers, row by row")
