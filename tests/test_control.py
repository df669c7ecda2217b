"""Control: hints are added to queries, and every property of decoding still holds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arpg_mini import editing
from arpg_mini.control import ControlAdapter, edges
from arpg_mini.decoding import decode, decode_sequential
from tests.helpers import tiny_model

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


def test_windows_take_their_piece_of_the_map(model):
    """On a larger grid, a sample of a batch is the same as the sample alone."""
    control, nothing = maps(2, grid=(6, 9)), torch.full((2, 6, 9), -1)
    both = editing.complete(model, nothing, [0, 1], [3, 4], steps=4, control=control)
    alone = editing.complete(model, nothing[:1], [1], [4], steps=4, control=control[1:])
    assert torch.equal(both[1:], alone)


@pytest.mark.parametrize("control", [torch.rand(2, 1, 6, 11), torch.rand(3, 1, 6, 10),
                                     torch.rand(2, 3, 6, 10), torch.rand(6, 10)])
def test_maps_of_another_size_are_named(model, control):
    with pytest.raises(ValueError, match="control"):
        decode(model, [0, 1], [3, 4], steps=4, control=control)
    with pytest.raises(ValueError, match="not trained with condition maps"):
        decode(tiny_model(), [0, 1], [3, 4], steps=4, control=maps(2))


def test_edges_are_the_sobel_gradients_length():
    """The values are computed by hand. A step from black to white gives 1 on both of its sides, a
    ramp gives its slope, and a flat picture gives 0. Both directions are treated alike. The channel
    with the largest gradient counts."""
    step = torch.full((1, 3, 5, 6), -1.0)
    step[..., 3:] = 1
    assert edges(step)[0, 0].tolist() == [[0, 0, 1, 1, 0, 0]] * 5
    assert torch.equal(edges(step.transpose(2, 3)), edges(step).transpose(2, 3))
    ramp = torch.linspace(-1, 1, 11).expand(1, 3, 4, 11)
    torch.testing.assert_close(edges(ramp)[0, 0, :, 1:-1], torch.full((4, 9), 0.2))
    one = torch.zeros(1, 3, 5, 6)
    one[:, 2] = step[:, 2]
    assert torch.equal(edges(one), edges(step)) and (edges(one * 0) == 0).all()
