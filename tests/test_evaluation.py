"""Scores that are right on pictures whose class and colour are known."""

import numpy as np
import pytest
import torch

from arpg_mini import data, evaluation, training
from arpg_mini.config import presets
from arpg_mini.tokenizer import VQTokenizer


@pytest.fixture(scope="module")
def judge():
    return evaluation.shapes_classifier()


def test_real_shapes_are_read_right_and_coherent(judge):
    images, labels = data.shapes(1000, seed=1)
    scores = evaluation.shapes_scores(images, labels, judge)
    assert scores["class accuracy"] > 0.99 and scores["colour coherence"] > 0.99


def test_wrong_labels_score_one_in_ten(judge):
    """1,000 shuffled labels: 0.1 within five standard deviations."""
    images, labels = data.shapes(1000, seed=1)
    shuffled = np.random.default_rng(0).permutation(labels)
    assert abs(evaluation.shapes_scores(images, shuffled, judge)["class accuracy"]
               - 0.1) < 5 * 0.0095


def test_two_colours_or_two_grounds_are_not_coherent():
    """Left half of one picture, right half of another: coherent only if both agree."""
    images, _ = data.shapes(400, seed=4)
    assert evaluation.colour_coherence(images).all()
    colours = evaluation.dominant_colour(images)
    grounds = evaluation.palette_counts(images)[:, 6:].argmax(1)
    halves = np.concatenate([images[:-1, :, :12], images[1:, :, 12:]], axis=2)
    agree = (colours[:-1] == colours[1:]) & (grounds[:-1] == grounds[1:])
    assert evaluation.colour_coherence(halves)[agree].all()
    assert evaluation.colour_coherence(halves)[~agree].mean() < 0.1


def test_pictures_without_foreground_or_of_noise_are_not_coherent():
    empty = np.broadcast_to(data.GROUNDS[:, None, None], (2, 24, 24, 3)).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (50, 24, 24, 3)).astype(np.uint8)
    assert (not evaluation.colour_coherence(empty).any()
            and not evaluation.colour_coherence(noise).any())


def test_palette_entries_are_well_apart():
    palette = np.concatenate([data.COLOURS, data.GROUNDS])
    apart = np.linalg.norm(palette[:, None] - palette, axis=-1) + 1e9 * np.eye(len(palette))
    assert apart.min() > 120


def test_the_dominant_colour_is_the_drawn_one():
    for index in range(50):
        rng = np.random.default_rng([9, index])
        _, colour = rng.integers(10), rng.integers(6)
        assert evaluation.dominant_colour(data.draw_shape(9, index)[0][None])[0] == colour


@pytest.mark.slow
def test_the_default_tokenizer_keeps_class_and_colour(judge):
    """The default run's tokenizer, trained here: its codebook is used, its pictures readable."""
    preset = presets()["shapes"]
    torch.manual_seed(0)
    tokenizer = VQTokenizer(preset.tokenizer)
    optimizer = training.make_optimizer(tokenizer, 0.0, preset.train.betas)
    pictures = data.shapes_pictures(10_000, 0)
    for _ in training.train_tokenizer(tokenizer, pictures, preset.train, 0, optimizer):
        pass
    scores = evaluation.tokenizer_scores(tokenizer.eval(), *data.shapes(2000, seed=1), judge)
    assert scores["codebook in use"] >= 0.75 and scores["PSNR"] > 22
    assert scores["class still read"] >= 0.975 and scores["colour still read"] >= 0.98, scores
