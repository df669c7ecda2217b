"""The decoder's arguments, its streaming form and the named orders; the rest is in
`test_equivalence.py`."""

import numpy as np
import pytest
import torch

from arpg_mini.decoding import decode, decode_steps
from arpg_mini.orders import named_order, random_orders, step_sizes
from arpg_mini.sampling import position_noise
from tests.helpers import tiny_model


def test_more_steps_than_tokens_are_refused():
    with pytest.raises(ValueError, match="steps 17: with 16 tokens"):
        step_sizes(16, 17)


def test_streaming_decodes_every_position_once_and_ends_as_decode_does():
    model = tiny_model()
    before = torch.full((2, 15), -1)
    for ids in decode_steps(model, [0, 1], [3, 4], steps=6):
        assert ((ids[before >= 0] == before[before >= 0]).all()
                and (ids >= 0).sum() > (before >= 0).sum())
        before = ids.clone()
    assert torch.equal(before, decode(model, [0, 1], [3, 4], steps=6))


def test_named_orders_are_permutations_that_do_what_they_say():
    for grid in ((1, 1), (3, 4), (5, 2), (6, 6)):
        for name in ("raster", "column", "spiral", "outward", "checkerboard"):
            assert sorted(named_order(name, grid).tolist()) == list(range(grid[0] * grid[1]))
        centre = (torch.tensor(grid) - 1) / 2
        away = [(torch.tensor(divmod(p, grid[1])) - centre).square().sum()
                for p in named_order("outward", grid).tolist()]
        assert away == sorted(away)
        first = named_order("checkerboard", grid)[:(grid[0] * grid[1] + 1) // 2]
        assert all(sum(divmod(p, grid[1])) % 2 == 0 for p in first.tolist())
    assert named_order("spiral", (3, 4)).tolist() == [0, 1, 2, 3, 7, 11, 10, 9, 8, 4, 5, 6]
    assert named_order("column", (2, 3)).tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize("wrong", [
    dict(seeds=[1]), dict(labels=[0, 4]), dict(labels=[-1, 0]), dict(schedule="linear"),
    dict(top_p=0.0), dict(top_k=-1), dict(temperature=-1.0), dict(within_step="none"),
    dict(guidance_schedule="arccos"), dict(steps=0), dict(steps=16),
    dict(steps=[3, 11]), dict(steps=[15, 0]),
    dict(orders=torch.zeros(15, dtype=torch.long)), dict(known=torch.tensor([11] + [-1] * 14)),
    dict(known=torch.tensor([[1] + [-1] * 14, [-1] * 15]))])
def test_invalid_arguments_are_named(wrong):
    arguments = dict(labels=[0, 1], seeds=[1, 2], steps=3) | wrong
    with pytest.raises(ValueError, match=next(iter(wrong)).replace("_", ".")[:5]):
        decode(tiny_model(), **arguments)


def test_order_noise_and_positions_use_separate_streams():
    """Broken if order and noise come from one stream: then a sample's order would reveal its
    noise."""
    order, noise = random_orders([0], 1000)[0].double(), position_noise([0], 1000)[0]
    assert abs(np.corrcoef(order, noise)[0, 1]) < 0.17          # 5 standard deviations


def test_a_seed_gives_the_same_image_for_ever():
    """Broken if orders or noise come from another random stream than those of published images."""
    orders, noise = random_orders([7, 2**31 + 7], 6), position_noise([7], 3)[0]
    assert orders.tolist() == [[5, 4, 1, 3, 2, 0], [4, 5, 0, 2, 1, 3]]
    assert noise.tolist() == [0.12054820956228385, 0.7570673923160587, 0.9055173761100825]
