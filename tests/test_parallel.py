"""The price of parallel steps is measured as its rows say: orders, steps, exact decoding."""

import io
import json
import sys
from argparse import Namespace
from contextlib import redirect_stdout
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from arpg_mini.data.builtin import FASHION_CLASSES, SHAPES
from arpg_mini.decoding import decode
from arpg_mini.exact import decode_exact
from arpg_mini.measure import parallel
from arpg_mini.measure.distances import frechet_distance, moments
from arpg_mini.measure.judge import Classifier, colour_coherence
from tests.helpers import code_of, tiny_model
from tests.strategies import for_all

CPU = torch.device("cpu")
HOW = dict(guidance=2.0, guidance_schedule="constant")


def as_pixels(ids: torch.Tensor) -> torch.Tensor:
    """In place of a tokenizer: (b, h, w) ids -> (b, 3, h, w) grey pixels in [-1, 1]."""
    return (ids[:, None].float() / 15 - 1).expand(-1, 3, -1, -1)


@for_all(4, count=st.sampled_from([7, 260]), seed=st.integers(0, 9))
def test_rows_are_their_definition(count, seed):
    """Every row draws the same classes with the same seeds, in its order and its way.

    Broken if a row is drawn in another's order, if parts of it are lost, or if passes or the share
    that equals one token a step belong to another row.
    """
    model = tiny_model(torch.float32, grid=(2, 3))
    orders, steps, windows = ["near", "random", "raster"], [2, 6], [1, 4, 16]
    options = Namespace(count=count, orders=orders, steps=steps, windows=windows, tokens=6)
    scored = []

    def score(images, labels):
        scored.append((images, labels))
        return {"x": (len(scored), 0.5)}

    rows = parallel.quality(model, SimpleNamespace(decode=as_pixels), score, options, HOW)
    labels, ways = np.arange(count) % 3, []
    for order in orders:
        ways += [(order, k, None) for k in steps]
    ways += [(orders[0], 6, w) for w in windows] + [(o, 6, parallel.WINDOW) for o in orders[1:]]
    assert len(rows) == len(ways) == len(scored), f"{len(rows)} rows, {len(scored)} scores"
    for i, (row, (order, k, window), (images, asked)) in enumerate(zip(rows, ways, scored)):
        ids = decode(model, labels, range(count), steps=k, orders=order, **HOW)
        passes, same = [k], None
        if window:
            expected, passes = decode_exact(model, labels, range(count), window, orders=order,
                                            **HOW)
            same = float((expected == ids).all(1).double().mean())
            ids, passes = expected, passes.tolist()
        assert np.array_equal(asked, labels), f"row {i}: labels {asked}"
        pixels = np.round(ids.view(-1, 2, 3).numpy() / 15 * 127.5).astype(int)
        assert np.abs(images[..., 0].astype(int) - pixels).max() <= 1, f"row {i}: other pictures"
        right = {"order": order, "steps": k, "window": window, "same": same, "scores":
                 {"x": (i + 1, 0.5)}, "fewest": min(passes), "most": max(passes)}
        mean = sum(passes) / len(passes)
        assert row == right | {"passes": pytest.approx(mean)}, f"{row}, by definition {right}"


@for_all(6, kind=st.sampled_from(["shapes", "fashion-mnist"]), n=st.integers(150, 300),
         seed=st.integers(0, 99))
def test_scores_have_their_standard_errors(kind, n, seed):
    """Of a share q it is √(q(1 − q)/n). Of a distance it is estimated by drawing again."""
    rng = np.random.default_rng(seed)
    images, others = (rng.integers(0, 256, (k, 8, 8, 3)).astype(np.uint8) for k in (n, 200))
    labels = rng.integers(0, 10, n)
    torch.manual_seed(seed)
    judge = Classifier(10).eval()
    with patch.object(parallel, "load_judge", lambda *_: judge), patch.object(
            parallel, "fashion_pictures", lambda _: SimpleNamespace(images=others)):
        got = parallel.Scorer(kind, CPU)(images, labels)

    def features(pictures):
        return judge.features(torch.from_numpy(pictures).permute(0, 3, 1, 2))

    right = {"class accuracy": np.mean(judge.predict(images) == labels)}
    if kind == "shapes":
        right["colour coherence"] = np.mean(colour_coherence(images))
    for name, q in right.items():
        assert got[name] == pytest.approx((q, (q * (1 - q) / n) ** 0.5)), f"{name} {got[name]}"
    if kind == "fashion-mnist":
        x, real = features(images), moments(features(others))
        again = np.std([frechet_distance(*real, *moments(x[rng.integers(n, size=n)]))
                        for _ in range(40)])
        value, error = got["distance"]
        right = frechet_distance(*real, *moments(x))
        assert value == pytest.approx(right, rel=1e-4), f"distance {value}, by definition {right}"
        assert again / 2 < error < 2 * again, f"error {error}, by definition about {again}"
    assert len(got) == 2, f"{got}"


@for_all(4, windows=st.sampled_from([[2], [1, 3]]), batches=st.sampled_from([[1], [2, 5]]))
def test_whole_decodes_are_timed(windows, batches):
    """For every batch size: each number of steps, then each window."""
    model, calls = tiny_model(torch.float32, grid=(2, 3)), []
    options = Namespace(batch_size=batches, windows=windows, steps=[2, 6], repeats=3)

    def paired(works, repeats, device, warm_up):
        assert repeats == 3 and device == CPU
        for name, work in works.items():
            assert len(list(work.start())) == work.steps == 1
            calls.append(name)
        return {name: np.full((3, 1), len(calls) + i) for i, name in enumerate(works)}

    made = []
    with patch.object(parallel, "paired", paired), \
            patch.object(parallel, "decode", lambda *a, **how: made.append((a, how))), \
            patch.object(parallel, "decode_exact", lambda *a, **how: made.append((a, how))):
        rows = parallel.speed(model, options, HOW, CPU)
    ways = [({"steps": k}, f"{k} steps") for k in (2, 6)]
    ways += [({"window": w}, f"exact, window {w}") for w in windows]
    right = [(b, how, name) for b in batches for how, name in ways]
    assert [(r["batch"], r["decoding"]) for r in rows] == [(b, name) for b, _, name in right]
    for (a, how), (b, own, name) in zip(made, right, strict=True):
        assert a[0] is model and list(a[2]) == list(range(b)) and how == own | HOW, f"{name}: {how}"
        assert list(a[1]) == [i % 3 for i in range(b)], f"{name}: labels {a[1]}"
    assert all(r["seconds"] == r["fastest"] == r["slowest"] > 0 for r in rows), f"{rows}"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command on a run folder with given classes; what it measures is replaced."""
    def call(*arguments, classes=list(SHAPES), code=0):
        model, seen = tiny_model(torch.float32, grid=(2, 3)), []
        row = {"order": "near", "steps": 6, "window": None, "same": None, "passes": 6.0,
               "fewest": 6, "most": 6, "scores": {"class accuracy": (0.5, 0.01)}}
        exact = row | {"window": 4, "same": 1.0, "passes": 2.25, "fewest": 2, "most": 3}
        time = {"batch": 1, "decoding": "6 steps", "seconds": 1.0, "fastest": 0.5, "slowest": 2.0}
        monkeypatch.setattr(parallel.checkpoint, "load_model",
                            lambda file: (model, {"classes": classes}))
        monkeypatch.setattr(parallel.checkpoint, "load_tokenizer", lambda file: (model, {}))
        monkeypatch.setattr(parallel, "Scorer", lambda kind, device: kind)
        monkeypatch.setattr(parallel, "quality", lambda *how: seen.append(how) or [row, exact])
        monkeypatch.setattr(parallel, "speed", lambda *how: seen.append(how) or [time])
        monkeypatch.setattr(sys, "argv", ["parallel", str(tmp_path), *map(str, arguments)])
        with redirect_stdout(io.StringIO()) as out:
            assert code_of(parallel.main) == code
        return seen, out.getvalue()
    return call


def test_its_flags_reach_what_is_measured(run):
    (_, _, kind, options, how), (_, again, _, device) = run()[0]
    assert kind == "shapes" and options is again and device.type in ("cpu", "cuda")
    assert how == HOW and (options.count, options.repeats) == (2000, 5)
    assert options.orders == ["random", "checkerboard", "near", "apart", "local", "halton"]
    assert (options.steps, options.windows, options.batch_size, options.tokens) == (
        [4, 6], [2, 4, 8, 16, 32], [1, 8, 64], 6)
    given = ("--count 300 --orders local,spiral --steps 3,1 --windows 5 --batch-size 2,7 "
             "--repeats 9 --guidance 4 --device cpu").split()
    (_, _, kind, options, how), _ = run(*given, classes=list(FASHION_CLASSES))[0]
    assert kind == "fashion-mnist" and how == HOW | {"guidance": 4.0}
    assert (options.count, options.orders, options.steps, options.windows, options.batch_size,
            options.repeats) == (300, ["local", "spiral"], [3, 1], [5], [2, 7], 9)


def test_its_tables_show_the_rows(run):
    text = " ".join(run()[1].split())
    assert "near 6 steps 6.0 6 to 6 0.500 ± 0.010" in text
    assert "near exact, window 4 2.2 2 to 3 100.0% 0.500 ± 0.010" in text
    assert text.endswith("1 6 steps 1.000 0.500 to 2.000")
    rows = json.loads(run("--json")[1])
    assert len(rows["quality"]) == 2 and rows["speed"][0]["slowest"] == 2.0


@pytest.mark.parametrize("arguments, classes, says", [
    (["--steps", 7], SHAPES, "--steps 7: these images have 6 tokens"),
    (["--orders", "x"], SHAPES, "--orders x: must be of random"),
    (["--count", 20], SHAPES, "--count"), ([], ["cat", "dog"], "neither shapes nor Fashion-MNIST"),
    (["--guidance", "nan"], SHAPES, "guidance")])
def test_mistakes_end_in_one_line(run, capsys, arguments, classes, says):
    run(*arguments, classes=list(classes), code=2)
    assert says in capsys.readouterr().err
