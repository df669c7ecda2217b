"""Control: hints are added to queries, and every property of decoding still holds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arpg_mini.control import ControlAdapter, edges
from arpg_mini.decoding import decode, decode_sequential
from tests.helpers import tiny_model
from tests.strategies import for_all

STRIDE = 2


@pytest.fixture(scope="module")
def model():
    """An adapter that has learned something: its last layer is not zero."""
    model = tiny_model(control_stride=STRIDE)
    torch.nn.init.normal_(model.control.out.bias)
    return model


def maps(batch, seed=0, grid=(3, 5)):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 1, STRIDE * grid[0], STRIDE * grid[1], generator=generator).double()


@settings(max_examples=25, deadline=None)
@given(steps=st.integers(1, 15), within=st.sampled_from(["block", "causal"]),
       guidance=st.sampled_from([1.0, 3.0]), seed=st.integers(0, 1000),
       known=st.sampled_from([None, 4]))
def test_cached_equals_uncached_with_a_control(model, steps, within, guidance, seed, known):
    how = dict(steps=min(steps, known or steps), within_step=within, guidance=guidance,
               control=maps(2, seed))
    if known:
        how["known"] = torch.tensor([3] * (15 - known) + [-1] * known)
    drawn = decode(model, [0, 3], [seed, 1], **how)
    assert torch.equal(drawn, decode_sequential(model, [0, 3], [seed, 1], **how))


def test_decoded_logits_are_the_trained_ones(model):
    """Greedy decoding, one token per step, chooses the ids with the largest training logits."""
    control = maps(2)
    ids = decode(model, [0, 1], [3, 4], steps=15, guidance=1, top_k=1, control=control)
    from arpg_mini.orders import random_orders
    orders = random_orders([3, 4], 15)
    logits = model.eval()(ids, torch.tensor([0, 1]), orders, control=control)
    assert torch.equal(logits.argmax(-1), ids.gather(1, orders))


def test_a_map_matters_where_it_is_and_only_to_queries(model):
    """A change in one corner of the map changes the logits of the targets near it, and no others.
    Broken if a hint reaches other positions, or changes keys and values."""
    a, b = maps(1), maps(1)
    b[..., :STRIDE, :STRIDE] = 0
    order, tokens = torch.arange(15)[None], torch.randint(11, (1, 15))
    logits = [model.eval()(tokens, torch.tensor([0]), order, control=m) for m in (a, b)]
    changed = (logits[0] != logits[1]).any(-1)[0].view(3, 5)
    assert changed[0, 0] and not changed[:, 3:].any()


def test_a_new_adapter_and_a_map_of_minus_one_change_nothing(model):
    fresh, plain = tiny_model(control_stride=STRIDE), tiny_model()
    torch.nn.init.zeros_(fresh.control.out.weight), torch.nn.init.zeros_(fresh.control.out.bias)
    plain.load_state_dict(fresh.state_dict(), strict=False)
    how = dict(steps=4, guidance=2.0)
    expected = decode(plain, [0, 1], [3, 4], **how)
    assert torch.equal(decode(fresh, [0, 1], [3, 4], control=maps(2), **how), expected)
    bare = decode(model, [0, 1], [3, 4], **how)
    assert torch.equal(decode(model, [0, 1], [3, 4], control=maps(2) * 0 - 1, **how), bare)
    assert not torch.equal(decode(model, [0, 1], [3, 4], control=maps(2), **how), bare)
    assert (ControlAdapter(8, 4)(torch.rand(1, 1, 8, 12)) == 0).all()


@pytest.mark.parametrize("control", [torch.rand(2, 1, 6, 11), torch.rand(3, 1, 6, 10),
                                     torch.rand(2, 3, 6, 10), torch.rand(6, 10)])
def test_maps_of_another_size_are_named(model, control):
    with pytest.raises(ValueError, match="control"):
        decode(model, [0, 1], [3, 4], steps=4, control=control)
    with pytest.raises(ValueError, match="not trained with condition maps"):
        decode(tiny_model(), [0, 1], [3, 4], steps=4, control=maps(2))


@for_all(30, b=st.integers(1, 2), h=st.integers(1, 5), w=st.integers(1, 6),
         contrast=st.sampled_from([1.0, 0.3]), seed=st.integers(0, 999))
def test_edges_are_the_length_of_sobels_gradient(b, h, w, contrast, seed):
    """A pixel's slope to the right is an eighth of the difference between its right and its left
    neighbours, those of its own row twice; a slope down likewise. The border repeats. The largest
    channel counts, and 1 is the most.
    """
    images = torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(seed)).double()
    images = contrast * (2 * images - 1).sign() if seed % 2 else contrast * (2 * images - 1)
    got = edges(images)
    assert got.shape == (b, 1, h, w), f"{tuple(got.shape)}"
    for i, picture in enumerate(images.tolist()):
        for y in range(h):
            for x in range(w):
                lengths = []
                for channel in picture:
                    def at(down, right):
                        return channel[min(max(y + down, 0), h - 1)][min(max(x + right, 0), w - 1)]
                    pairs = [(-1, 1), (0, 2), (1, 1)]            # where, how often
                    across = sum(n * (at(k, 1) - at(k, -1)) for k, n in pairs) / 8
                    down = sum(n * (at(1, k) - at(-1, k)) for k, n in pairs) / 8
                    lengths.append(math.hypot(across, down))
                right = min(1, max(lengths))
                assert abs(got[i, 0, y, x] - right) < 1e-9, \
                    f"picture {i}, y {y}, x {x}: {got[i, 0, y, x]:.4g}, by definition {right:.4g}"


def test_a_step_from_black_to_white_is_an_edge_of_one():
    step = torch.full((1, 3, 5, 6), -1.0)
    step[..., 3:] = 1
    assert edges(step)[0, 0].tolist() == [[0, 0, 1, 1, 0, 0]] * 5
