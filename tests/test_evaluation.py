"""Scores on pictures whose class and colour are known; distances compared with closed forms and
slow definitions; files that are scored from start to end."""

import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arpg_mini import training
from arpg_mini.config import presets
from arpg_mini.data import builtin as data
from arpg_mini.measure import evaluation
from arpg_mini.measure import judge as judging
from arpg_mini.tokenizer import VQTokenizer
from tests.helpers import FakeIds, code_of, tiny_model


@pytest.fixture(scope="module")
def judge():
    return judging.shapes_classifier()


def test_real_shapes_are_read_right_and_coherent(judge):
    images, labels = data.shapes(1000, seed=1)
    scores = judging.shapes_scores(images, labels, judge)
    assert scores["class accuracy"] > 0.99 and scores["colour coherence"] > 0.99


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
    for _ in training.train_tokenizer(tokenizer, pictures, preset.train, 0, optimizer):
        pass
    scores = judging.tokenizer_scores(tokenizer.eval(), *data.shapes(2000, seed=1), judge)
    assert scores["codebook in use"] >= 0.75 and scores["PSNR"] > 22
    assert scores["class still read"] >= 0.96 and scores["colour still read"] >= 0.98, scores


# Distances between sets of features.


def gaussian(d: int, seed: int, rank: int | None = None):
    """A mean and a covariance of a given rank, float64."""
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(d, rank or d, dtype=torch.float64, generator=g)
    return torch.randn(d, dtype=torch.float64, generator=g), factor @ factor.T


@settings(max_examples=60, deadline=None)
@given(d=st.integers(1, 12), rank=st.integers(1, 12), seeds=st.tuples(*[st.integers(0, 999)] * 2))
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
    assert evaluation.frechet_distance(*a, *b) == close
    assert evaluation.frechet_distance(*b, *a) == close
    assert evaluation.frechet_distance(*b, *b) < 1e-9 * b[1].trace()
    turn = torch.linalg.qr(gaussian(d, 7)[1]).Q
    turned = [(turn @ mean, turn @ covariance @ turn.T) for mean, covariance in (a, b)]
    assert evaluation.frechet_distance(*turned[0], *turned[1]) == close


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


def test_moments_are_numpys():
    features = torch.randn(25_000, 5, generator=torch.Generator().manual_seed(0)) + 1000
    mean, covariance = evaluation.moments(features)
    wide = features.double().numpy()
    assert np.allclose(mean, wide.mean(0)) and np.allclose(covariance, np.cov(wide.T), rtol=1e-9)


def test_the_inception_score_at_its_ends():
    """It is 1 if all predictions are equal. It is K if they are certain and K classes are equally
    frequent. Parts are scored separately."""
    assert evaluation.inception_score(torch.full((100, 8), 1 / 8)) == (1.0, 0.0)
    certain = torch.eye(8).repeat(50, 1)
    assert evaluation.inception_score(certain) == pytest.approx((8.0, 0.0))
    by_part = torch.eye(8).repeat_interleave(10, 0)
    assert evaluation.inception_score(by_part, splits=8) == pytest.approx((1.0, 0.0))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 12), m=st.integers(1, 12), seed=st.integers(0, 999), k=st.integers(1, 3),
       rows=st.integers(1, 20))
def test_precision_and_recall_are_their_slow_definition(n, m, seed, k, rows):
    g = torch.Generator().manual_seed(seed)
    real, fake = torch.randn(n, 2, generator=g), torch.randn(m, 2, generator=g) + 0.5

    def share(points, others):
        near = 0
        for p in points:
            for o in others:
                radius = sorted((o - q).norm() for q in others)[min(k, len(others) - 1)]
                if (p - o).norm() <= radius + 1e-6:
                    near += 1
                    break
        return near / len(points)

    assert evaluation.precision_recall(real, fake, k, rows) == pytest.approx(
        (share(fake, real), share(real, fake)))


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
        return x if return_features else x.softmax(1)


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


def test_mistakes_end_in_one_line(files, judge, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(judging, "shapes_classifier", lambda: judge)
    monkeypatch.setattr(evaluation, "shapes_classifier", lambda: judge)
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


def test_the_judges_distance_needs_no_download(files, judge, monkeypatch, capsys, tmp_path):
    """The judge of the shapes is used, and saved under runs/ for the next time. The distance is
    never called FID."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judging, "shapes_classifier", lambda: judge)
    scores = []
    for name in ("others", "noise"):
        code, said, _ = run(monkeypatch, capsys, "shapes", files[name], "--few")
        assert code == 0 and "FID" not in said and "judge-shapes.pt" in said["features"]
        scores.append(float(said["shapes distance"]))
    assert scores[0] < scores[1] / 5 and (tmp_path / "runs" / "judge-shapes.pt").exists()


def test_bits_per_token_are_the_loss_and_its_error(monkeypatch):
    """The result is the mean of the pictures' losses in bits. Its error comes from their spread."""
    model, ids = tiny_model(), FakeIds()
    order = torch.arange(15)
    bits, error = evaluation.bits_per_token(model, ids, order)
    tokens, labels = torch.from_numpy(ids.ids[:, 0].astype(np.int64)), torch.from_numpy(ids.labels)
    each = [model(tokens[i:i + 1], labels[i:i + 1], order[None], loss_rows=9).item() / math.log(2)
            for i in range(20)]
    assert bits == pytest.approx(np.mean(each)) and error == pytest.approx(
        np.std(each, ddof=1) / 20 ** 0.5)
    assert evaluation.bits_per_token(model, ids, None)[0] != pytest.approx(bits)
