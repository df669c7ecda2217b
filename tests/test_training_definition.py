"""Training equals its definition (`tests/training_definition.py`): every number of every step.

The models are in float64. Rounding makes equal weights differ by about 1e-12; 1e-7 is allowed.
"""

import copy
from unittest.mock import patch

import numpy as np
import torch
from hypothesis import strategies as st

from arpg_mini import TokenizerConfig, VQTokenizer, training
from arpg_mini.config import TrainConfig
from arpg_mini.data.builtin import Pictures
from arpg_mini.run import tokenizing
from arpg_mini.tokenizer import Codebook, to_device
from tests.helpers import FakeIds, tiny_model
from tests.strategies import for_all, seeds, short
from tests.training_definition import (
    train_by_hand,
    train_tokenizer_by_hand,
    validate_by_hand,
)

SMALL = dict(grid=(2, 3), dim=8, heads=1, content_layers=1, query_layers=1, ffn_hidden=8)


def agree(where: str, got: dict, right: dict, tolerance: float = 1e-7) -> None:
    """Compare numbers and tensors by name. A NaN equals a NaN. The message names the first that
    differs."""
    __tracebackhide__ = True
    assert got.keys() == right.keys(), f"{where}: {sorted(got)}, by definition {sorted(right)}"
    for name in right:
        if isinstance(right[name], dict):
            agree(f"{where}, {name}", got[name], right[name], tolerance)
            continue
        a, b = (torch.as_tensor(x[name], dtype=torch.float64) for x in (got, right))
        assert a.shape == b.shape, f"{where}: {name} {a.shape}, by definition {b.shape}"
        if not torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True):
            one = a.numel() == 1
            raise AssertionError(f"{where}: {name} " + (
                f"{a.item():.6g}, by definition {b.item():.6g}" if one else
                f"differs by {(a - b).abs().max():.2g} from its definition"))


def maps_of(tokens: torch.Tensor) -> torch.Tensor:
    """Condition maps, two pixels per token of a 2×3 grid."""
    return tokens.view(-1, 1, 2, 3).repeat_interleave(2, 2).repeat_interleave(2, 3).double() / 11


def state(model, average) -> dict:
    return {"weights": dict(model.named_parameters()), "average": dict(average.named_parameters())}


def spoiled(model, config: TrainConfig, bad: set[int], start: int):
    """The model, as training calls it. The loss of the `bad` steps is NaN in the last piece."""
    pieces = -(-config.batch_size // config.micro_batch)
    calls = start * pieces - 1

    def call(*batch, **how):
        nonlocal calls
        calls += 1
        assert len(batch[0]) <= config.micro_batch, f"{len(batch[0])} samples at a time"
        return model(*batch, **how) * (float("nan") if calls % pieces == pieces - 1
                                       and calls // pieces in bad else 1)
    return call


courses = st.fixed_dictionaries(dict(
    pictures=st.sampled_from([5, 1, 20, 3]), views=st.sampled_from([1, 2, 3]),
    batch_size=st.sampled_from([1, 2, 5, 7]), micro_batch=st.sampled_from([7, 1, 2, 3]),
    steps=st.integers(2, 6), start=st.integers(0, 3), class_dropout=st.sampled_from([0.0, 0.5]),
    dropout=st.sampled_from([0.0, 0.3]), warmup=st.sampled_from([0.25, 0.0, 0.9]),
    lr=st.sampled_from([0.03, 0.003]), final_lr=st.sampled_from([1e-5, 0.01]),
    weight_decay=st.sampled_from([0.0, 0.5]), grad_clip=st.sampled_from([100.0, 0.01]),
    betas=st.sampled_from([(0.9, 0.95), (0.5, 0.7)]), ema=st.sampled_from([0.9999, 0.3]),
    loss_rows=st.sampled_from([8192, 5]), controlled=st.booleans(),
    bad=st.sampled_from([(), (0,), (1,), (0, 2), (3,)]), seed=seeds))


@for_all(20, case=courses)
def test_training_steps_are_their_definition(case):
    """Consecutive steps from any step on: loss, rate, norm, weights and average equal those that
    `train_by_hand` computes from the whole batch. A step whose gradient is NaN changes no weight.

    Broken if anything is drawn, summed, clipped, decayed or averaged in another way or order.
    """
    case = dict(case)
    ids = FakeIds(6, case.pop("pictures"), case.pop("views"))
    seed, bad, start = case.pop("seed"), case.pop("bad"), case.pop("start")
    control = maps_of if case.pop("controlled") else None
    model = tiny_model(**SMALL, dropout=case.pop("dropout"), control_stride=2 if control else 0,
                       class_dropout=case.pop("class_dropout"))
    config, by_hand = TrainConfig(**case), copy.deepcopy(model)
    average, start = training.average_of(model), min(start, config.steps - 1)
    bad = {start + later for later in bad}
    optimizer = training.make_optimizer(model, config.weight_decay, config.betas)
    steps = training.train_arpg(model, spoiled(model, config, bad, start), average, ids, config,
                                seed, optimizer, start, control=control)
    expected = train_by_hand(by_hand, ids, config, seed, start, control=control, bad=bad)
    done = 0
    for step, (got, right) in enumerate(zip(steps, expected), start):
        for name in ("exp_avg", "exp_avg_sq", "step"):
            got[name] = {k: optimizer.state[p][name] if p in optimizer.state else
                         torch.zeros_like(p) * (name != "step")
                         for k, p in model.named_parameters()}
        agree(f"step {step}", got | state(model, average), right)
        done += 1
    assert done == config.steps - start, f"{done} steps, not {config.steps - start}"
    assert not average.training and not any(p.requires_grad for p in average.parameters()), \
        "the average learns"


@for_all(10, pictures=st.sampled_from([3, 20, 1, 251]), count=st.sampled_from([2000, 8]),
         batch=st.sampled_from([250, 3]), controlled=st.booleans(), mode=st.booleans(), seed=seeds)
def test_the_validation_loss_is_its_definition(pictures, count, batch, controlled, mode, seed):
    """It is the mean over the pictures, one by one. It leaves the model in the mode it was in.

    Broken if a picture is left out or weighed twice, if dropout or class drops are on, or if a
    picture's order depends on its batch.
    """
    model = tiny_model(**SMALL, dropout=0.3, class_dropout=0.5,
                       control_stride=2 if controlled else 0).train(mode)
    ids, control = FakeIds(6, pictures), maps_of if controlled else None
    how = {"batch": batch} if count == 2000 else {"batch": batch, "count": count}
    if batch == 250:
        del how["batch"]
    got = training.validation_loss(model, ids, seed, control=control, **how)
    assert model.training == mode, "the model's mode has changed"
    right = validate_by_hand(model, ids, seed, count, control)
    assert abs(got - right) < 1e-9 * right, f"{got:.8g}, by definition {right:.8g}"


def noise(n: int, side: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3)).astype(np.uint8)


def float64_pixels(*batch):
    return to_device(*batch).double()


@for_all(8, steps=st.integers(1, 10), batch=st.integers(1, 5),
         patience=st.integers(1, 3), clip=st.sampled_from([100.0, 0.01]),
         warmup=st.sampled_from([0.25, 0.9]), seed=seeds)
def test_the_tokenizers_steps_are_their_definition(steps, batch, patience, clip, warmup, seed):
    """The losses and weights after every step equal those of `train_tokenizer_by_hand`: first a
    plain autoencoder, then k-means, then all losses, with rows revived until four fifths.

    Broken if a phase begins or ends at another step, a loss is left out, or a rate is another's.
    """
    torch.manual_seed(0)
    tokenizer = VQTokenizer(TokenizerConfig(
        channels=32, multipliers=(1, 1), encoder_blocks=1, decoder_blocks=1, latent_channels=4,
        codebook_size=9, code_dim=3, local_encoder=True)).double()
    config, images = TrainConfig(tokenizer_steps=steps, tokenizer_batch_size=batch,
                                 tokenizer_patience=patience, tokenizer_lr=0.01, lr=0.5,
                                 grad_clip=clip, warmup=warmup, steps=77), noise(30)
    expected = train_tokenizer_by_hand(copy.deepcopy(tokenizer), images, config, seed)
    optimizer = training.make_optimizer(tokenizer.eval(), 0.0, config.betas)
    pictures, done = Pictures(images, np.zeros(30), ["all"], ""), 0
    with patch.object(tokenizing, "to_device", float64_pixels):
        for got, right in zip(tokenizing.train_tokenizer(tokenizer, pictures, config, seed,
                                                         optimizer), expected):
            got = got | {"weights": dict(tokenizer.named_parameters())}
            agree(f"step {done} of {steps}", got, right, 1e-6)
            done += 1
    assert done == steps, f"{done} steps, not {steps}"
    assert tokenizer.training, "the tokenizer was trained in evaluation mode"


@for_all(4, kinds=st.integers(1, 4), seed=seeds)
def test_a_centre_that_no_feature_is_near_stays(kinds, seed):
    """With more rows than different features, some rows get none. All stay on some feature.

    Broken if the mean of nothing becomes a row.
    """
    coins = torch.Generator().manual_seed(seed)
    features, book = torch.eye(4)[torch.randint(kinds, (50,), generator=coins)], Codebook(9, 4)
    book.fit(features, coins)
    for k, row in enumerate(book.rows.tolist()):
        assert row in features.tolist(), f"row {k} is {short(row)}, not one of {kinds} features"
