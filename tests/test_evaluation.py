"""Scores equal their slow definitions, and are right on pictures whose class and colour are known.
Tables and files are scored from start to end."""

import math
import re
import sys
import tempfile
import warnings
from argparse import Namespace
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch.nn import functional as F

from arpg_mini import training
from arpg_mini.config import FIXED_ORDERS
from arpg_mini.data import builtin as data
from arpg_mini.measure import evaluation
from arpg_mini.measure import judge as judging
from arpg_mini.orders import named_order
from arpg_mini.run import tokenizing
from arpg_mini.run.presets import presets
from arpg_mini.tokenizer import VQTokenizer
from tests.helpers import FakeIds, code_of, tiny_model
from tests.strategies import for_all, short

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def judge():
    return judging.shapes_classifier()


@pytest.mark.slow
def test_real_shapes_are_read_right_and_coherent(judge):
    images, labels = data.shapes(1000, seed=1)
    scores = judging.shapes_scores(images, labels, judge)
    assert scores["class accuracy"] > 0.99 and scores["colour coherence"] > 0.99


@pytest.mark.slow
def test_wrong_labels_score_one_in_ten(judge):
    """For 1,000 shuffled labels the accuracy is 0.1 within five standard deviations."""
    images, labels = data.shapes(1000, seed=1)
    shuffled = np.random.default_rng(0).permutation(labels)
    assert abs(judging.shapes_scores(images, shuffled, judge)["class accuracy"]
               - 0.1) < 5 * 0.0095


def test_two_colours_or_two_grounds_are_not_coherent():
    """The left half of one picture and the right half of another are coherent only if both colour
    and ground agree."""
    images, _ = data.shapes(400, seed=4)
    assert judging.colour_coherence(images).all()
    colours = judging.dominant_colour(images)
    grounds = judging.palette_counts(images)[:, 6:].argmax(1)
    halves = np.concatenate([images[:-1, :, :12], images[1:, :, 12:]], axis=2)
    agree = (colours[:-1] == colours[1:]) & (grounds[:-1] == grounds[1:])
    assert judging.colour_coherence(halves)[agree].all()
    assert judging.colour_coherence(halves)[~agree].mean() < 0.1


def test_pictures_without_foreground_or_of_noise_are_not_coherent():
    empty = np.broadcast_to(data.GROUNDS[:, None, None], (2, 24, 24, 3)).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (50, 24, 24, 3)).astype(np.uint8)
    assert (not judging.colour_coherence(empty).any()
            and not judging.colour_coherence(noise).any())


def test_palette_entries_are_well_apart():
    palette = np.concatenate([data.COLOURS, data.GROUNDS])
    apart = np.linalg.norm(palette[:, None] - palette, axis=-1) + 1e9 * np.eye(len(palette))
    assert apart.min() > 120


def test_the_dominant_colour_is_the_drawn_one():
    for index in range(50):
        rng = np.random.default_rng([9, index])
        _, colour = rng.integers(10), rng.integers(6)
        assert judging.dominant_colour(data.draw_shape(9, index)[0][None])[0] == colour


@pytest.mark.slow
def test_the_default_tokenizer_keeps_class_and_colour(judge):
    """The default run's tokenizer, trained here, uses its codebook and gives readable pictures. (On
    two kinds of processor, which sum in different orders, 0.987 and 0.9725 of the classes are
    read.)"""
    preset = presets()["shapes"]
    torch.manual_seed(0)
    tokenizer = VQTokenizer(preset.tokenizer)
    optimizer = training.make_optimizer(tokenizer, 0.0, preset.train.betas)
    pictures = data.shapes_pictures(10_000, 0)
    for _ in tokenizing.train_tokenizer(tokenizer, pictures, preset.train, 0, optimizer):
        pass
    scores = judging.tokenizer_scores(tokenizer.eval(), *data.shapes(2000, seed=1), judge)
    assert scores["codebook in use"] >= 0.75 and scores["PSNR"] > 22
    assert scores["class still read"] >= 0.96 and scores["colour still read"] >= 0.98, scores


def near(pixel: list[int], entry: list[float]) -> bool:
    return sum((a - b) ** 2 for a, b in zip(pixel, entry)) < 60 ** 2


def palette_by_hand(image: np.ndarray) -> list[int]:
    """Pixels near each of the six colours and the two grounds."""
    pixels = image.reshape(-1, 3).tolist()
    return [sum(near(pixel, entry) for pixel in pixels)
            for entry in [*data.COLOURS.tolist(), *data.GROUNDS.tolist()]]


def coherent_by_hand(image: np.ndarray) -> bool:
    counts = palette_by_hand(image)
    colours, grounds = counts[:6], counts[6:]
    return (2 * sum(counts) >= image.shape[0] * image.shape[1] and sum(colours) >= 8
            and 10 * max(colours) >= 9 * sum(colours) and 20 * max(grounds) >= 19 * sum(grounds))


def painted(size, entries, counts, shifts, seed) -> np.ndarray:
    """A picture of `size` with so many pixels of each palette entry, shifted in one channel. The
    others are grey, which is near no entry."""
    rng, palette = np.random.default_rng(seed), np.concatenate([data.COLOURS, data.GROUNDS])
    pixels = np.full((size[0] * size[1], 3), 128.0)
    pixels[:sum(counts)] = np.repeat(palette[entries], counts, 0)[:len(pixels)]
    for pixel in pixels[:sum(counts)]:
        channel, shift = rng.integers(3), rng.choice(shifts)
        pixel[channel] += shift if pixel[channel] < 128 else -shift
    return rng.permutation(pixels).reshape(*size, 3).astype(np.uint8)


paintings = st.builds(
    painted, st.sampled_from([(4, 10), (10, 6)]),
    st.permutations(range(6)).map(lambda p: [p[0], p[1], 6, 7]) | st.just([0, 5, 7, 6]),
    st.tuples(st.sampled_from([9, 18, 8, 7, 17]), st.sampled_from([0, 1, 2]),
              st.sampled_from([19, 11, 38, 18, 0, 10]), st.sampled_from([0, 1, 2])),
    st.sampled_from([[0], [0], [0, 30], [0, 59], [0, 60], [0] * 9 + [61]]), st.integers(0, 999))


@for_all(100, picture=paintings)
def test_coherence_and_colours_are_their_definition(picture):
    """The thresholds of `coherent_by_hand`, at pictures near all of them.

    Broken if a threshold is another or moves, or if a colour counts as a ground.
    """
    counts = palette_by_hand(picture)
    got = judging.palette_counts(picture[None])[0].tolist()
    assert got == counts, f"pixels near the palette: {got}, by definition {counts}"
    got, right = judging.colour_coherence(picture[None])[0], coherent_by_hand(picture)
    assert got == right, f"counts {counts} of {picture.size // 3}: coherent {got}, not {right}"
    got, right = judging.dominant_colour(picture[None])[0], counts.index(max(counts[:6]))
    assert got == right, f"counts {counts}: colour {got} is the dominant one, not {right}"


@for_all(25, n=st.integers(1, 3), h=st.integers(1, 4), w=st.integers(1, 5), seed=st.integers(0, 99),
         noise=st.sampled_from([0.5, 0.01, 0.0]))
def test_psnr_is_its_definition(n, h, w, seed, noise):
    """The mean over pictures of 10·log10(2² / mean square), for pictures in [-1, 1]. A mean square
    is 1e-10 at least."""
    rng = np.random.default_rng(seed)
    images = rng.random((n, 3, h, w)) * 2 - 1
    others = images + noise * rng.random(images.shape) * rng.random((n, 1, 1, 1))
    each = [10 * math.log10(4 / max(1e-10, sum((a - b) ** 2 for a, b in zip(x.flat, y.flat))
                                    / x.size)) for x, y in zip(images, others)]
    got, right = judging.psnr(*map(torch.from_numpy, (images, others))), sum(each) / n
    assert abs(got - right) < 1e-6, f"{got:.6g} dB, by definition {right:.6g}"


class Judge:
    """Reads a class out of a picture's first pixel."""

    def predict(self, images: np.ndarray) -> np.ndarray:
        return images[:, 0, 0, 0] // 26


class Rounding(torch.nn.Module):
    """A tokenizer of 2×2 pixels: the id is the red of the first one, rounded."""

    config = Namespace(codebook_size=17)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return (images[:, 0, ::2, ::2] * 5 + 5).round().long()

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        red = (ids / 5 - 1).repeat_interleave(2, 1).repeat_interleave(2, 2)
        return torch.stack([red, red / 2, -red], 1)


@for_all(4, n=st.sampled_from([251, 3]), seed=st.integers(0, 999))
def test_shares_of_pictures_are_counted_one_by_one(n, seed):
    """The scores of drawn pictures and of a tokenizer, picture by picture.

    Broken if a score compares something else, or leaves out the last, smaller batch.
    """
    rng, coder, judge = np.random.default_rng(seed), Rounding(), Judge()
    palette = np.concatenate([data.COLOURS, data.GROUNDS])
    images = palette[rng.integers(8, size=(n, 4, 6))].astype(np.uint8)
    images[:, :, 2:] = images[:, :1, :1]
    labels = np.where(rng.random(n) < 0.5, images[:, 0, 0, 0] // 26, rng.integers(10, size=n))
    right = {"class accuracy": sum(x[0, 0, 0] // 26 == y for x, y in zip(images, labels)) / n,
             "colour coherence": sum(map(coherent_by_hand, images)) / n}
    got = judging.shapes_scores(images, labels, judge)
    assert got == pytest.approx(right), f"{got}, by definition {right}"
    used, made, errors = set(), [], []
    for x in images:
        inputs = x.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
        ids = coder.encode(torch.from_numpy(inputs))
        outputs = coder.decode(ids).numpy()
        used |= set(ids.flatten().tolist())
        made.append(np.clip((outputs[0].transpose(1, 2, 0) + 1) * 127.5, 0, 255).round())
        errors.append(10 * math.log10(4 / max(1e-10, np.mean((inputs - outputs) ** 2))))

    def colour(x):
        counts = palette_by_hand(x)[:6]
        return counts.index(max(counts))

    right = {"codebook in use": len(used) / 17, "PSNR": sum(errors) / n,
             "class still read": sum(x[0, 0, 0] // 26 == y for x, y in zip(made, labels)) / n,
             "colour still read": sum(colour(x) == colour(y) for x, y in zip(made, images)) / n}
    got = judging.tokenizer_scores(coder, images, labels, judge)
    assert got == pytest.approx(right, abs=1e-4), f"{got}, by definition {right}"


def strong_judge(seed: int) -> judging.Classifier:
    torch.manual_seed(seed)
    judge = judging.Classifier(5)
    for parameter in judge.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return judge


@for_all(8, n=st.sampled_from([2, 1, 501]), h=st.integers(2, 5), w=st.integers(6, 9),
         seed=st.integers(0, 99))
def test_a_judge_sees_upright_pictures_from_minus_one_to_one(n, h, w, seed):
    """Features are the inputs of the last layer, and a prediction is its largest output.

    Broken if pictures are not scaled, lie on their side, or are left out.
    """
    judge, rng = strong_judge(seed), np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, h, w, 3)).astype(np.uint8)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
    with torch.no_grad():
        for layer, (weight, bias) in enumerate([(judge[i].weight, judge[i].bias)
                                                for i in (0, 2, 4)]):
            x = F.conv2d(x, weight, bias, stride=(2, 2, 1)[layer], padding=1).clamp(min=0)
        x = x.mean((2, 3))
        got = judge.features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        assert got.shape == x.shape, f"features {tuple(got.shape)}, not {tuple(x.shape)}"
        off = (got - x).abs().max() / x.abs().max()
        classes = (x @ judge[-1].weight.T + judge[-1].bias).argmax(1).tolist()
    assert off < 1e-4, f"features are off by {off:.2g} of the largest"
    got = judge.predict(images).tolist()
    assert got == classes, f"classes {got}, by definition {classes}"


@for_all(3, blemish=st.sampled_from([0.1, 0.6, 0.0]), cell=st.sampled_from([4, 3]),
         steps=st.integers(1, 2), seed=st.integers(0, 99))
def test_a_judge_learns_from_pictures_with_blemishes(blemish, cell, steps, seed):
    """The weights after some steps, with every batch put together pixel by pixel."""
    rng = np.random.default_rng(seed + 1)
    images, labels = rng.integers(0, 256, (9, 8, 8, 3)).astype(np.uint8), np.arange(9) % 4
    got = judging.train_classifier(images, labels, steps, seed, blemish, cell)
    torch.manual_seed(seed)
    coins, judge = np.random.default_rng(seed), judging.Classifier(4)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3)
    for _ in range(steps):
        rows, others = coins.integers(9, size=(2, 128))
        hit = coins.random((128, -(-8 // cell), -(-8 // cell))) < blemish
        batch = np.array([[[images[b if hit[i, y // cell, x // cell] else a, y, x]
                            for x in range(8)] for y in range(8)]
                          for i, (a, b) in enumerate(zip(rows, others))])
        inputs = torch.from_numpy(batch.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
        optimizer.zero_grad()
        F.cross_entropy(judge(inputs), torch.from_numpy(labels[rows])).backward()
        optimizer.step()
    for name, weight in judge.named_parameters():
        off = (got.get_parameter(name) - weight).abs().max()
        assert off < 1e-4, f"{name} differs by {off:.2g} after {steps} steps"
    assert not got.training, "the judge is still in training mode"


# Distances between sets of features.


def gaussian(d: int, seed: int, rank: int | None = None):
    """A mean and a covariance of a given rank, float64."""
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(d, rank or d, dtype=torch.float64, generator=g)
    return torch.randn(d, dtype=torch.float64, generator=g), factor @ factor.T


@for_all(60, d=st.integers(1, 12), rank=st.integers(1, 12),
         seeds=st.tuples(*[st.integers(0, 999)] * 2))
def test_the_frechet_distance_is_its_formula(d, rank, seeds):
    """It is |m - m'|² + tr(C + C' - 2 (CC')^½); the eigenvalues of CC' give the trace of the root.
    It is symmetric, zero from a distribution to itself, and the same after a rotation. Covariances
    may be singular."""
    a, b = gaussian(d, seeds[0]), gaussian(d, seeds[1], min(rank, d))
    eigenvalues = torch.linalg.eigvals(a[1] @ b[1]).real.clamp(min=0)
    expected = ((a[0] - b[0]).square().sum() + a[1].trace() + b[1].trace()
                - 2 * eigenvalues.sqrt().sum()).item()
    size = (a[1].trace() + b[1].trace()).item()
    close = pytest.approx(max(0, expected), rel=1e-6, abs=1e-5 * size)
    got = evaluation.frechet_distance(*a, *b)
    assert got == close, f"{got:.6g}, by its formula {expected:.6g}"
    back, itself = (evaluation.frechet_distance(*b, *other) for other in (a, b))
    assert back == close, f"{got:.6g} one way, {back:.6g} the other"
    assert itself < 1e-9 * b[1].trace(), f"{itself:.6g} to itself"
    turn = torch.linalg.qr(gaussian(d, 7)[1]).Q
    turned = [(turn @ mean, turn @ covariance @ turn.T) for mean, covariance in (a, b)]
    after = evaluation.frechet_distance(*turned[0], *turned[1])
    assert after == close, f"{got:.6g}, after a rotation {after:.6g}"


def test_the_distance_of_nan_features_is_nan():
    """Broken if a NaN feature gives a perfect distance."""
    mean, covariance = gaussian(3, 0)
    assert math.isnan(evaluation.frechet_distance(mean * math.nan, covariance, mean, covariance))


def test_the_frechet_distance_in_closed_form():
    """For independent coordinates it is the sum of (m - m')² + (s - s')². The second example has
    two normals on different axes."""
    def axis(means, deviations):
        return torch.tensor(means).double(), torch.tensor(deviations).double().square().diag()
    distance = evaluation.frechet_distance
    assert distance(*axis([1, 2], [3, 1]), *axis([0, 4], [1, 1])) == pytest.approx(1 + 4 + 4)
    assert distance(*axis([0, 0], [1, 0]), *axis([0, 0], [0, 1])) == pytest.approx(2)
    assert distance(*axis([0, 0], [0, 0]), *axis([0, 0], [0, 2])) == pytest.approx(4)


def moments_by_hand(rows: list[list[float]]) -> tuple[list[float], list[list[float]]]:
    n, d = len(rows), range(len(rows[0]))
    mean = [math.fsum(row[i] for row in rows) / n for i in d]
    return mean, [[math.fsum((row[i] - mean[i]) * (row[j] - mean[j]) for row in rows) / (n - 1)
                   for j in d] for i in d]


@for_all(12, n=st.sampled_from([2, 3, 7, 10_003]), d=st.integers(1, 3),
         far=st.sampled_from([0, 1000]), seed=st.integers(0, 99))
def test_moments_are_their_definition(n, d, far, seed):
    """Mean, and covariance divided by n - 1, however far the mean is from zero, in several parts.
    """
    features = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + far
    for name, got, right in zip(("mean", "covariance"), evaluation.moments(features),
                                moments_by_hand(features.double().tolist())):
        off = (got - torch.tensor(right, dtype=torch.float64)).abs().max()
        assert got.dtype == torch.float64 and off < 1e-9, f"{name} of {n}: off by {off:.2g}"


def inception_by_hand(rows: list[list[float]], splits: int) -> tuple[float, float]:
    splits, scores, start = min(splits, len(rows)), [], 0
    for part in range(splits):
        end = start + len(rows) // splits + (part < len(rows) % splits)     # the first are larger
        here, start = rows[start:end], end
        mean = [sum(column) / len(here) for column in zip(*here)]
        apart = [sum(p * math.log(p / q) for p, q in zip(row, mean) if p) for row in here]
        scores.append(math.exp(sum(apart) / len(here)))
    mean = sum(scores) / splits
    return mean, math.sqrt(sum((x - mean) ** 2 for x in scores) / splits)


@for_all(50, n=st.integers(1, 25), classes=st.integers(1, 5), splits=st.sampled_from([10, 3, 1, 4]),
         zeros=st.booleans(), seed=st.integers(0, 999))
def test_the_inception_score_is_its_definition(n, classes, splits, zeros, seed):
    """exp of the mean divergence, part by part, then mean and standard deviation over the parts.

    Broken if the exponential or the mean comes first, or the parts are of other pictures.
    """
    rows = np.random.default_rng(seed).random((n, classes)) ** 4
    if zeros:
        rows[np.arange(n), np.arange(n) % classes] *= 2
        rows[rows < 0.2] = 0
        rows[:, -1] += 0.1
    rows /= rows.sum(1, keepdims=True)
    got = evaluation.inception_score(torch.from_numpy(rows), splits)
    right = inception_by_hand(rows.tolist(), splits)
    assert got == pytest.approx(right, rel=1e-9, abs=1e-9), \
        f"{n} pictures, {splits} parts: {short(list(got))}, by definition {short(list(right))}"
    if splits == 10:
        plain = evaluation.inception_score(torch.from_numpy(rows))
        assert plain == got, f"{plain} without `splits`, {got} with 10"


def share_by_hand(points: list, others: list, k: int) -> float:
    """The share of points in a ball around one of the others, up to its k-th neighbour there."""
    within = 0
    for p in points:
        for o in others:
            radius = sorted(math.dist(o, q) for q in others)[min(k, len(others) - 1)]
            if math.dist(p, o) <= radius + 1e-6:
                within += 1
                break
    return within / len(points)


@for_all(60, n=st.integers(1, 12), m=st.integers(1, 12), seed=st.integers(0, 999),
         k=st.integers(1, 4), rows=st.integers(1, 20), far=st.sampled_from([0.0, 1.0, 1e5]))
def test_precision_and_recall_are_their_slow_definition(n, m, seed, k, rows, far):
    """Precision is the share of fake pictures near real ones, recall the reverse.

    Broken if they are swapped, k counts the picture itself, or numbers far from zero lose digits.
    """
    g = torch.Generator().manual_seed(seed)
    real, fake = torch.randn(n, 2, generator=g).double(), torch.randn(m, 2, generator=g) + 0.5
    real, fake = real + far, fake.double() + far
    got = evaluation.precision_recall(real, fake, k, rows)
    right = (share_by_hand(fake.tolist(), real.tolist(), k),
             share_by_hand(real.tolist(), fake.tolist(), k))
    assert got == pytest.approx(right), f"precision, recall {got}, by definition {right}"
    if k == 3:
        plain = evaluation.precision_recall(real, fake)
        assert plain == pytest.approx(right), f"without `k` {plain}, by definition {right}"


@for_all(10, sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3), h=st.integers(1, 3),
         w=st.integers(4, 5), seed=st.integers(0, 99))
def test_features_are_taken_from_upright_pictures_in_their_order(sizes, h, w, seed):
    """The network gets uint8 (n, 3, height, width), batch by batch.

    Broken if height and width are swapped, pictures are scaled, or a batch is missing.
    """
    rng = np.random.default_rng(seed)
    batches = [rng.integers(0, 256, (n, h, w, 3)).astype(np.uint8) for n in sizes]
    seen = []

    def network(images):
        seen.append(images.dtype)
        return images.flatten(1).double()

    got = evaluation.extract(network, iter(batches), sum(sizes), CPU)
    right = [[float(x[y, z, c]) for c in range(3) for y in range(h) for z in range(w)]
             for batch in batches for x in batch]
    assert got.tolist() == right, f"the network saw {short(got[0])}, not {short(right[0])}"
    assert set(seen) == {torch.uint8} and got.dtype == torch.float32, f"{seen}, then {got.dtype}"


# Tables.


def told(work, *arguments) -> list[str]:
    """The lines that a function prints."""
    with redirect_stdout(StringIO()) as out:
        work(*arguments)
    return out.getvalue().splitlines()


class Pretending:
    """A model that says it has so many ids that `bits_per_token` takes a few pictures at a time."""

    def __init__(self, model, at_once: int):
        self.model, self.embedding = model, model.embedding
        n = math.prod(model.config.grid)
        self.config = Namespace(vocab_size=2**26 // (n * at_once))

    def __call__(self, *batch):
        return self.model(*batch)


def bits_by_hand(model, ids, orders: list[list[int]]) -> tuple[float, float]:
    """The mean over pictures of -log2 of each token's probability, and its standard error."""
    each = []
    for tokens, label, order in zip(ids.ids[:, 0].astype(int), ids.labels, orders):
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens)[None], torch.tensor([label]),
                           torch.tensor(order)[None])[0].double()
        each.append(sum(-math.log2(row.exp()[tokens[p]] / row.exp().sum())
                        for row, p in zip(logits, order)) / len(order))
    mean = sum(each) / len(each)
    spread = math.sqrt(sum((x - mean) ** 2 for x in each) / (len(each) - 1))
    return mean, spread / math.sqrt(len(each))


def orders_by_hand(seed: int, count: int, n: int) -> list[list[int]]:
    return [np.random.default_rng([1, seed + i]).permutation(n).tolist() for i in range(count)]


@for_all(12, pictures=st.integers(2, 6), count=st.integers(2, 9), seed=st.integers(0, 999),
         name=st.sampled_from(["random", "column", "spiral"]), at_once=st.sampled_from([9, 2, 1]))
def test_bits_per_token_are_their_definition(pictures, count, seed, name, at_once):
    """Of the first `count` pictures, under one order or each picture's own random one.

    Broken if the unit is another, a batch has the orders of another, or the error lacks its root.
    """
    model, ids, few = tiny_model(grid=(2, 3)).eval(), FakeIds(6, pictures), min(pictures, count)
    orders = None if name == "random" else named_order(name, (2, 3))
    got = evaluation.bits_per_token(Pretending(model, at_once), ids, orders, count, seed)
    right = bits_by_hand(model, ids, orders_by_hand(seed, few, 6) if orders is None
                         else [orders.tolist()] * few)
    assert got == pytest.approx(right, rel=1e-9), \
        f"{few} pictures, {name}: {short(list(got))} bits, by definition {short(list(right))}"


@for_all(2, pictures=st.sampled_from([5, 3]), count=st.sampled_from([4, 9]))
def test_the_table_of_orders_holds_what_its_heads_say(pictures, count):
    model, ids = tiny_model(grid=(2, 3)).eval(), FakeIds(6, pictures)
    with patch.object(evaluation.checkpoint, "load_model", lambda path: (model, {})), \
            patch.object(evaluation, "Ids", lambda path: ids):
        head, *rows = told(evaluation.orders_table, Path("run"), count, CPU)
    assert head.split() == ["order", "bits/token", "±", "standard", "error"], f"heads: {head}"
    few, right = min(pictures, count), []
    for name, seed in (("random", 0), ("random again", 10**6),
                       *((x, None) for x in FIXED_ORDERS)):
        orders = ([named_order(name, (2, 3)).tolist()] * few if seed is None
                  else orders_by_hand(seed, few, 6))
        right.append(name.split() + [f"{x:.4f}" for x in bits_by_hand(model, ids, orders)])
    assert [row.split() for row in rows] == right, f"{rows}, by definition {right}"


@for_all(2, count=st.sampled_from([7, 503]), guidance=st.sampled_from([2.0, 3.5]))
def test_the_table_of_steps_holds_what_its_heads_say(count, guidance):
    """Picture i has class i modulo 10 and seed i. Every row's pictures are drawn in its number of
    steps, block or causal, with the run's schedule."""
    def drawn(model, labels, seeds, steps, within_step, guidance, guidance_schedule):
        kind = steps + 50 * (within_step == "causal") + int(100 * guidance) + len(guidance_schedule)
        return torch.tensor([[(y * (steps + 1) + seed * seed + kind * p) % 11 for p in range(6)]
                             for y, seed in zip(labels.tolist(), seeds)])

    model, coder, judge = tiny_model(grid=(2, 3)), Rounding(), Judge()
    rng, saved = np.random.default_rng(0), {"classes": list(data.SHAPES),
                                            "guidance_schedule": "constant"}
    real = rng.integers(0, 256, (9, 4, 6, 3)).astype(np.uint8), rng.integers(10, size=9)
    with patch.object(evaluation.checkpoint, "load_model", lambda path: (model, saved)), \
            patch.object(evaluation.checkpoint, "load_tokenizer", lambda path: (coder, {})), \
            patch.object(evaluation, "shapes_classifier", lambda: judge), \
            patch.object(evaluation, "shapes", lambda count, seed: real), \
            patch.object(evaluation, "decode", drawn):
        lines = told(evaluation.steps_table, Path("run"), count, guidance, CPU)
    scores = judging.tokenizer_scores(coder, *real, judge)
    right = [f"tokenizer, {name}: {score:.4g}".split() for name, score in scores.items()]
    right += ["steps within step class accuracy colour coherence".split()]
    shares = judging.shapes_scores(*real, judge).values()
    right += [["real", *(f"{x:.3f}" for x in shares)]]
    labels = np.arange(count) % 10
    for steps in (1, 2, 4, 6):
        for within in ("block", "causal"):
            ids = drawn(None, labels, range(count), steps, within, guidance, "constant")
            made = ((coder.decode(ids.view(-1, 2, 3)) + 1) * 127.5).round().clamp(0, 255)
            made = made.byte().permute(0, 2, 3, 1).numpy()
            shares = judging.shapes_scores(made, labels, judge).values()
            right += [[str(steps), within, *(f"{x:.3f}" for x in shares)]]
    for line, expected in zip(lines, right):
        assert line.split() == expected, f"{line.split()}, by definition {expected}"
    assert len(lines) == len(right), f"{len(lines)} lines, not {len(right)}"


@for_all(4, n=st.sampled_from([12, 7]), seed=st.integers(0, 99))
def test_a_file_of_shapes_is_compared_with_real_ones(n, seed):
    rng = np.random.default_rng(seed)
    made, held = (data.COLOURS[rng.integers(6, size=(k, 4, 6))].astype(np.uint8) for k in (n, 25))
    for images in (made, held):
        images[:len(images) * 3 // 4, :, 3:], images[::2, :, :3] = data.GROUNDS[0], data.COLOURS[1]
    labels, real_labels = (np.where(np.arange(len(x)) % 3, x[:, 0, 0, 0] // 26, 0)
                           for x in (made, held))
    with tempfile.TemporaryDirectory() as folder, \
            patch.object(evaluation, "shapes_classifier", Judge), \
            patch.object(evaluation, "shapes", lambda count, seed: (held, real_labels)):
        np.savez(Path(folder) / "made.npz", arr_0=made, arr_1=labels)
        lines = told(evaluation.score_shapes, Path(folder) / "made.npz")
    right = []
    for name, score in (("class accuracy", None), ("colour coherence", coherent_by_hand)):
        a, b = (np.mean(list(map(score, x)) if score else x[:, 0, 0, 0] // 26 == y)
                for x, y in ((made, labels), (held, real_labels)))
        right.append(f"{name}: {a:.3f} on {n} images, {b:.3f} on 2000 real ones, ratio {a / b:.3f}")
    assert lines == right, f"{lines}, by definition {right}"


def three_numbers(images: torch.Tensor) -> torch.Tensor:
    x = images.float()
    return torch.stack([x[:, 0].mean((1, 2)), x[:, 1, :, :2].mean((1, 2)),
                        x[:, 2, :1].mean((1, 2))], 1)


def fid_by_hand(real, fake) -> float:
    (m, c), (other_m, other_c) = real, fake
    roots = np.linalg.eigvals(np.array(c) @ np.array(other_c)).real.clip(0) ** 0.5
    return (sum((x - y) ** 2 for x, y in zip(m, other_m)) + np.trace(c) + np.trace(other_c)
            - 2 * roots.sum())


@for_all(12, kind=st.sampled_from(["two files", "stored", "shapes", "fashion-mnist"]),
         n=st.integers(8, 14), m=st.integers(5, 23), first=st.sampled_from([None, 40]),
         seed=st.integers(0, 99))
def test_a_comparison_prints_what_it_says(kind, n, m, first, seed):
    """The distance between all real and all fake pictures, or the stored moments of the real ones.
    Precision, recall and the Inception score are on the right side of their names.
    """
    rng = np.random.default_rng(seed)
    real, fake = (rng.integers(0, high, (k, 2, 5, 3)).astype(np.uint8)
                  for k, high in ((n, 256), (m, 200)))
    stored = dict(mu=np.arange(3.0), sigma=np.diag([9.0, 4, 1])) if kind == "stored" else {}
    named = kind in ("shapes", "fashion-mnist")

    def probabilities(images):
        return (three_numbers(images) / 30).softmax(1)

    network = ("my distance", "a network", three_numbers, None if named else probabilities)
    asked = []

    def pictures_of(name):
        def call(*arguments, **how):
            asked.append((name, *arguments, how))
            return (real, None) if name == "shapes" else Namespace(images=real)
        return call

    with tempfile.TemporaryDirectory() as folder, \
            warnings.catch_warnings(), \
            patch.object(evaluation, "choose_network", lambda options, device: network), \
            patch.object(evaluation, "shapes", pictures_of("shapes")), \
            patch.object(evaluation, "fashion_pictures", pictures_of("fashion-mnist")):
        warnings.simplefilter("ignore")
        files = [Path(folder) / name for name in ("real.npz", "fake.npz", "network.pt")]
        np.savez(files[0], arr_0=real, **stored)
        np.savez(files[1], arr_0=fake, **({} if first is None else {"seed": first}))
        files[2].write_bytes(b"network")
        options = Namespace(what=Path(kind) if named else files[0], fake=files[1], judge=None,
                            inception=None if named else files[2], few=True)
        lines = told(evaluation.compare, options, CPU)
        again = told(evaluation.compare, options, CPU)          # with the stored features
    a, b = (three_numbers(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).tolist()
            for x in (real, fake))
    moments = (stored["mu"], stored["sigma"]) if stored else moments_by_hand(a)
    distance = fid_by_hand(moments, moments_by_hand(b))
    right = [f"real: {options.what}, {n} pictures"
             + "; mean and covariance as stored in the file" * bool(stored),
             f"fake: {options.fake}, {m} pictures of 2×5"
             + (f", seeds {first} to {first + m - 1}" if first else ""),
             "features: 3, of a network", f"my distance: {distance:.4f}"]
    if not named:
        rows = probabilities(torch.from_numpy(fake.transpose(0, 3, 1, 2).copy())).tolist()
        score = inception_by_hand(rows, 10)
        right.append(f"Inception score: {score[0]:.3f} ± {score[1]:.3f} over {min(10, m)} parts, "
                     "in the file's order")
    right.append(f"precision: {share_by_hand(b, a, 3):.4f}, recall: {share_by_hand(a, b, 3):.4f} "
                 "(k = 3, all pictures)")
    for line, expected in zip(lines, right):
        same = line == expected
        if line.startswith("my distance"):
            same = abs(float(line.split()[-1]) - distance) < 1e-3 + 1e-5 * distance
        assert same, f"'{line}', by definition '{expected}'"
    assert len(lines) == len(right) and again == lines, f"{len(lines)} lines, then {again}"
    if named:
        right = ("shapes", 10_000, {"seed": 1}) if kind == "shapes" else (kind, "t10k", {})
        assert asked == [right] * 2, f"pictures asked for: {asked}"


# Files.


class Network(torch.nn.Module):
    """Replaces the Inception network. It is called alike; its features are 2×2 means of the
    picture."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    def forward(self, images: torch.Tensor, return_features: bool = False,
                no_output_bias: bool = False) -> torch.Tensor:
        x = torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1) * self.scale
        return x if return_features else (x if no_output_bias else -x).softmax(1)


def write(path, images, **more):
    np.savez(path, arr_0=images, **more)
    return str(path)


@pytest.fixture
def files(tmp_path):
    """A TorchScript network with 12 features; 60 real pictures, 60 other real ones, 60 of noise."""
    torch.jit.script(Network()).save(tmp_path / "network.pt")
    real, others = data.shapes(60, seed=1)[0], data.shapes(60, seed=2)[0]
    noise = np.random.default_rng(0).integers(0, 256, real.shape).astype(np.uint8)
    return {name: write(tmp_path / f"{name}.npz", images)
            for name, images in (("real", real), ("others", others), ("noise", noise))} | {
                "--inception": str(tmp_path / "network.pt")}


def few_shapes(count, seed):
    """At most 300: the command takes 10,000."""
    return data.shapes(min(count, 300), seed)


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, arguments)])
    code = code_of(evaluation.main)
    out, error = capsys.readouterr()
    return code, dict(re.findall(r"^([\w ]+): (.*)$", out, re.M)), error.split("\r")[-1]


def test_two_files_are_scored_from_end_to_end(files, monkeypatch, capsys, tmp_path):
    """The FID is zero to the file itself, small to others of the same kind, large to noise. The
    output says how it was computed. The reference's features are saved, and made again for another
    network."""
    network = ("--inception", files["--inception"])
    code, itself, _ = run(monkeypatch, capsys, files["real"], files["real"], *network)
    assert code == 0 and abs(float(itself["FID"])) < 1e-3
    assert itself["precision"].startswith("1.0000, recall: 1.0000")
    assert itself["real"].endswith("real.npz, 60 pictures") and "12, of network.pt" in itself[
        "features"]
    images = torch.from_numpy(data.shapes(60, seed=1)[0]).permute(0, 3, 1, 2)
    certainty = inception_by_hand(Network()(images, no_output_bias=True).double().tolist(), 10)
    assert itself["Inception score"].startswith("{:.3f} ± {:.3f} over 10".format(*certainty))
    score = [float(run(monkeypatch, capsys, files["real"], files[x], *network)[1]["FID"])
             for x in ("others", "noise")]
    assert 0 < score[0] < score[1] / 3
    kept = tmp_path / "real.npz.features"
    first = kept.read_bytes()
    kept.write_bytes(first[:100])                                # truncated: made again
    assert run(monkeypatch, capsys, files["real"], files["noise"], *network)[1]["FID"] == str(
        f"{score[1]:.4f}")
    torch.jit.script(Network(2.0)).save(tmp_path / "network.pt")
    twice = run(monkeypatch, capsys, files["real"], files["noise"], *network)[1]
    assert float(twice["FID"]) == pytest.approx(4 * score[1], rel=1e-3)
    assert kept.read_bytes() != first


def test_statistics_stored_with_the_reference_are_used(files, monkeypatch, capsys, tmp_path):
    """In the files that ADM published, `mu` and `sigma` are of a larger set than `arr_0`."""
    stored = write(tmp_path / "stored.npz", data.shapes(60, seed=1)[0], mu=np.zeros(12),
                   sigma=np.zeros((12, 12)))
    _, said, _ = run(monkeypatch, capsys, stored, files["noise"], "--inception",
                     files["--inception"])
    features = evaluation.extract(lambda images: Network()(images, True),
                                  evaluation.pictures(files["noise"]), 60, torch.device("cpu"))
    mean, covariance = evaluation.moments(features)
    assert float(said["FID"]) == pytest.approx((mean.square().sum() + covariance.trace()).item(),
                                               rel=1e-5)
    assert "as stored in the file" in said["real"]


def test_mistakes_end_in_one_line(files, monkeypatch, capsys, tmp_path):
    judge = strong_judge(0)
    monkeypatch.setattr(judging, "shapes_classifier", lambda: judge)
    monkeypatch.setattr(evaluation, "shapes_classifier", lambda: judge)
    monkeypatch.setattr(evaluation, "shapes", few_shapes)
    few = write(tmp_path / "few.npz", data.shapes(11, seed=3)[0])
    flat = write(tmp_path / "flat.npz", np.zeros((3, 4), np.uint8))
    whole = Path(files["noise"]).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:len(whole) // 2])
    np.savez(tmp_path / "names.npz", images=np.zeros(3))
    large = write(tmp_path / "large.npz", np.zeros((3, 48, 48, 3), np.uint8), arr_1=np.zeros(3))
    stored = write(tmp_path / "nan.npz", data.shapes(60, seed=1)[0], mu=np.full(12, np.nan),
                   sigma=np.eye(12))
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "other.pt")
    monkeypatch.chdir(tmp_path)
    network = ("--inception", files["--inception"])
    for arguments, says in (
            ([files["real"], few, *network], "11 pictures for 12 features"),
            ([files["real"], flat, *network], "flat.npz: its arr_0 is uint8 (3, 4)"),
            ([files["real"], tmp_path / "cut.npz", *network], "cut.npz: holds no arr_0"),
            ([files["real"], tmp_path / "names.npz", *network], "names.npz: holds no arr_0"),
            ([tmp_path / "none.npz", files["real"], *network], "none.npz: holds no arr_0"),
            ([files["real"], few, "--inception", few], "few.npz: no readable TorchScript"),
            ([files["real"], files["noise"]], "--inception FILE, or --judge"),
            (["shapes", large], "large.npz: its pictures have 48×48 pixels, those of shapes 24×24"),
            ([large], "large.npz: its pictures are (48, 48, 3), those of shapes (24, 24, 3)"),
            ([stored, files["noise"], *network], "nan.npz: its mu is float64 (12,)"),
            ([files["real"], files["noise"], "--inception", tmp_path / "other.pt"],
             "other.pt: can't be called as the Inception network"),
            ([files["real"], "--count", "-5"], "--count -5: must be 2 or more"),
            ([tmp_path, "--guidance", "nan"], "--guidance nan: must be a number"),
            ([tmp_path, "--orders"], "model.pt: no such file"),
            ([files["real"], files["noise"], "--judge", "cats"], "--judge shapes or fashion-mnist"),
            ([files["real"]], "real.npz: holds no arr_1")):
        code, _, error = run(monkeypatch, capsys, *arguments)
        assert code == 2 and says in error and error.count("\n") == 1, (arguments, error)
    code, said, _ = run(monkeypatch, capsys, files["real"], few, *network, "--few")
    assert code == 0 and float(said["FID"]) > 0


def test_the_judges_distance_needs_no_download(files, monkeypatch, capsys, tmp_path):
    """The judge of the shapes is used, and saved under runs/ for the next time. The distance is
    never called FID."""
    torch.manual_seed(0)
    judge = judging.Classifier(10).eval()       # untrained: its features tell shapes from noise
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judging, "shapes_classifier", lambda: judge)
    monkeypatch.setattr(evaluation, "shapes", few_shapes)
    scores = []
    for name in ("others", "noise"):
        code, said, _ = run(monkeypatch, capsys, "shapes", files[name], "--few")
        assert code == 0 and "FID" not in said and "judge-shapes.pt" in said["features"]
        scores.append(float(said["shapes distance"]))
    assert scores[0] < scores[1] / 5 and (tmp_path / "runs" / "judge-shapes.pt").exists()
