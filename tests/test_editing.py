"""Properties of editing: known tokens never change, and hidden pixels never show. With nothing
known, editing is plain sampling. A sample does not depend on its batch."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arpg_mini import TokenizerConfig, VQTokenizer, editing
from arpg_mini.decoding import decode
from tests.helpers import tiny_model

TRAINED, V, STRIDE = (3, 5), 11, 4
SETTINGS = dict(steps=4, guidance=2.0)
METHODS = ["windows", "extrapolate", "interpolate", "ntk"]
few = settings(max_examples=25, deadline=None)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def tokenizer():
    """Not local: its encoder sees the whole picture, like the released one."""
    torch.manual_seed(0)
    return VQTokenizer(TokenizerConfig(channels=32, multipliers=(1, 1, 1), encoder_blocks=1,
                                       decoder_blocks=1, latent_channels=32, codebook_size=V,
                                       code_dim=4)).eval()


def known_grids(batch=2):
    """Ids of a grid up to three times the trained one. A random part of them is -1."""
    grids = st.tuples(st.integers(1, 9), st.integers(1, 11))
    return st.builds(lambda grid, seed, share: np.where(
        np.random.default_rng(seed).random((batch, *grid)) < share, -1,
        np.random.default_rng(seed + 1).integers(0, V, (batch, *grid))),
        grids, st.integers(0, 10**6), st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))


@few
@given(known=known_grids(), method=st.sampled_from(METHODS))
def test_known_tokens_stay_and_unknown_ones_are_drawn(model, known, method):
    """No step changes known ids. After the last step no id is unknown. The caller's tensor does not
    change."""
    given_ids = torch.from_numpy(known)
    before = given_ids.clone()
    for ids in editing.complete_steps(model, given_ids, [0, 1], [3, 4], positions=method,
                                      **SETTINGS):
        assert (ids[before >= 0] == before[before >= 0]).all()
    assert torch.equal(given_ids, before) and ids.min() >= 0 and ids.max() < V


@few
@given(known=known_grids(batch=3), method=st.sampled_from(METHODS))
def test_a_sample_does_not_depend_on_its_batch(model, known, method):
    """Rows with different masks get the same ids together, in another order, and alone."""
    ids = torch.from_numpy(known)

    def drawn(rows):
        return editing.complete(model, ids[rows], [rows[i] % 3 for i in range(len(rows))],
                                [10 + row for row in rows], positions=method, **SETTINGS)

    together = drawn([0, 1, 2])
    assert torch.equal(drawn([2, 0]), together[[2, 0]]) and torch.equal(drawn([1]), together[[1]])


@pytest.mark.parametrize("method", METHODS)
def test_nothing_known_on_the_trained_grid_is_plain_sampling(model, method):
    """With the same seeds, every method gives the ids of plain sampling."""
    nothing = torch.full((2, *TRAINED), -1)
    drawn = editing.complete(model, nothing, [0, 2], [5, 6], positions=method, **SETTINGS)
    assert torch.equal(drawn.flatten(1), decode(model, [0, 2], [5, 6], **SETTINGS))


@few
@given(known=known_grids(batch=1).map(lambda k: k[0] >= 0), steps=st.integers(1, 15))
def test_windows_cover_what_is_unknown_and_see_what_is_there(known, steps):
    """Each window has the trained size and something to draw. Every window after the first sees
    tokens, if there are any. A window never has more steps than tokens to draw."""
    size = tuple(min(n, t) for n, t in zip(known.shape, TRAINED))
    done, plan = known.copy(), editing.plan_windows(known, size, steps, usual=15)
    for number, (r, c, few_steps) in enumerate(plan):
        window = done[r:r + size[0], c:c + size[1]]
        assert window.shape == size and not window.all()
        assert 1 <= few_steps <= (~window).sum()
        if number and min(size) > 1 and known.shape != size:
            assert window.any() or not done.any()
        done[r:r + size[0], c:c + size[1]] = True
    assert done.all()


def test_windows_never_ask_beyond_trained_distances(model):
    """Every decode for a 9×20 grid has the trained 3×5 grid, and no position is extrapolated."""
    nothing = torch.full((1, 9, 20), -1)
    with patch.object(editing, "decode_steps", side_effect=editing.decode_steps) as decoded:
        editing.complete(model, nothing, [0], [0], **SETTINGS)
    assert {call.kwargs["grid"] for call in decoded.call_args_list} == {TRAINED}
    seeds = [tuple(call.args[2]) for call in decoded.call_args_list]
    assert len(set(seeds)) == len(seeds) > 12               # no noise is used twice


def images_of(batch, height=12, width=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, height, width, generator=generator) * 2 - 1


masks = st.builds(lambda seed, share: torch.from_numpy(
    np.random.default_rng(seed).random((2, 12, 20)) < share),
    st.integers(0, 10**6), st.sampled_from([0.0, 0.01, 0.05, 0.5, 1.0]))


@few
@given(mask=masks, feather=st.integers(0, 4))
def test_pixels_outside_the_mask_are_the_given_ones(model, tokenizer, mask, feather):
    """Broken if a single bit of them changes, with or without feathering."""
    images = images_of(2)
    out = editing.inpaint(model, tokenizer, images, mask, [0, 1], [3, 4], feather=feather,
                          **SETTINGS)
    outside = ~mask[:, None].expand_as(images)
    assert torch.equal(out[outside], images[outside]) and out.isfinite().all()


def test_an_empty_mask_gives_the_picture_back(model, tokenizer):
    images = images_of(2)
    mask = torch.zeros(2, 12, 20, dtype=torch.bool)
    assert torch.equal(editing.inpaint(model, tokenizer, images, mask, [0, 1], [3, 4]), images)


def test_a_full_mask_is_plain_sampling(model, tokenizer):
    mask = torch.ones(2, 12, 20, dtype=torch.bool)
    out = editing.inpaint(model, tokenizer, images_of(2), mask, [0, 1], [3, 4], **SETTINGS)
    ids = decode(model, [0, 1], [3, 4], **SETTINGS)
    assert torch.equal(out, tokenizer.decode(ids.view(2, *TRAINED)))
    assert torch.equal(out, editing.expand(model, tokenizer, [0, 1], [3, 4], TRAINED, **SETTINGS))


@few
@given(mask=masks)
def test_what_the_mask_hides_shows_nowhere(model, tokenizer, mask):
    """Another picture under the mask gives the same result, although the encoder sees the whole
    picture."""
    images, others = images_of(2), images_of(2, seed=1)
    swapped = torch.where(mask[:, None], others, images)
    results = [editing.inpaint(model, tokenizer, x, mask, [0, 1], [3, 4], **SETTINGS)
               for x in (images, swapped)]
    assert torch.equal(*results)


def test_the_property_above_would_notice_a_leak(model, tokenizer):
    """If the hidden pixels are encoded too, known tokens change. So the property above can fail."""
    mask = torch.zeros(1, 12, 20, dtype=torch.bool)
    mask[:, :, 10:] = True
    images, others = images_of(1), images_of(1, seed=1)
    swapped = torch.where(mask[:, None], others, images)
    known = ~editing.token_mask(mask, STRIDE)
    assert (tokenizer.encode(images)[known] != tokenizer.encode(swapped)[known]).any()


def test_a_token_is_unknown_if_any_of_its_pixels_is():
    mask = torch.zeros(1, 8, 12, dtype=torch.bool)
    mask[0, 3, 4] = mask[0, 7, 11] = True
    assert editing.token_mask(mask, 4).int().tolist() == [[[0, 1, 0], [0, 0, 1]]]


def test_the_seam_is_a_ramp_inside_the_mask():
    """The new pixels' weight rises from 0 to 1 over a strip. Known pixels stay as they are; the
    third pixel inside the mask is all new."""
    images, made = torch.zeros(1, 3, 1, 9), torch.ones(1, 3, 1, 9)
    mask = torch.tensor([[[False] * 3 + [True] * 6]])
    ramp = editing.composite(images, made, mask, feather=2)[0, 0, 0]
    torch.testing.assert_close(ramp, torch.tensor([0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1, 1.0]))
    assert editing.composite(images, made, mask)[0, 0, 0].tolist() == [0] * 3 + [1] * 6


@few
@given(mask=masks, feather=st.integers(0, 30))
def test_a_seam_never_shows_what_the_mask_hides(mask, feather):
    """Other pixels under the mask give the same result. A blended colour stays between its two
    colours."""
    images, others, made = images_of(2), images_of(2, seed=1) * 100, images_of(2, seed=2)
    swapped = torch.where(mask[:, None], others, images)
    results = [editing.composite(x, made, mask, feather) for x in (images, swapped)]
    assert torch.equal(*results) and results[0].abs().max() <= 1 + 1e-6


def test_candidates_of_one_picture_are_what_each_would_be_alone(model, tokenizer):
    images, mask = images_of(1), torch.zeros(1, 12, 20, dtype=torch.bool)
    mask[:, :, 7:] = True
    three = editing.inpaint(model, tokenizer, images, mask, [0, 1, 2], [7, 8, 9], **SETTINGS)
    alone = editing.inpaint(model, tokenizer, images, mask, [1], [8], **SETTINGS)
    torch.testing.assert_close(three[1:2], alone)
    assert (three[0] - three[1]).abs().max() > 0.1
    edited = editing.edit_class(model, tokenizer, images, mask, [1], [8], **SETTINGS)
    assert torch.equal(edited, alone)


@pytest.mark.parametrize("at", [(0, 0), (2, 1), (3, 6)])
def test_outpainting_puts_the_picture_where_it_is_told(model, tokenizer, at):
    images = images_of(2)
    out = editing.outpaint(model, tokenizer, images, (6, 11), at, [0, 1], [3, 4], feather=1,
                           **SETTINGS)
    assert out.shape == (2, 3, 24, 44)
    y, x = (STRIDE * n for n in at)
    assert torch.equal(out[:, :, y:y + 12, x:x + 20], images)
    with pytest.raises(ValueError, match="does not fit"):
        editing.outpaint(model, tokenizer, images, (6, 11), (4, 0), [0, 1], [3, 4])


def test_a_class_matters_to_what_is_drawn(model, tokenizer):
    images, mask = images_of(1), torch.ones(1, 12, 20, dtype=torch.bool)
    mask[:, :4] = False
    a, b = (editing.edit_class(model, tokenizer, images, mask, [c], [8], **SETTINGS)
            for c in (0, 1))
    assert not torch.equal(a, b)


def test_guidance_leads_away_from_the_class_it_is_told(model, tokenizer):
    """`against` gives a class to the unconditional half. "No class" gives plain guidance, and the
    class itself gives no guidance. Each row has its own."""
    labels, seeds, none = [0, 1], [3, 4], [model.null_label] * 2
    plain = decode(model, labels, seeds, **SETTINGS)
    assert torch.equal(decode(model, labels, seeds, against=none, **SETTINGS), plain)
    alone = decode(model, labels, seeds, steps=4, guidance=1)
    assert torch.equal(decode(model, labels, seeds, against=labels, **SETTINGS), alone)
    mixed = decode(model, labels, seeds, against=[0, model.null_label], **SETTINGS)
    assert torch.equal(mixed, torch.stack([alone[0], plain[1]])) and not torch.equal(mixed, plain)
    known = torch.full((2, 9, 9), -1)
    swapped = editing.complete(model, known, [1, 0], [4, 3], against=[2, 0], **SETTINGS)
    both = editing.complete(model, known, labels, seeds, against=[0, 2], **SETTINGS)
    assert torch.equal(swapped.flip(0), both)
    with pytest.raises(ValueError, match="1 classes to lead away from"):
        decode(model, labels, seeds, against=[0], **SETTINGS)
    with pytest.raises(ValueError, match="labels"):
        decode(model, labels, seeds, against=[0, 9], **SETTINGS)


def test_larger_grids_are_seen_through_windows_of_the_trained_size(tokenizer):
    """A grid of the trained size is one window. A corner is in one window only. Where windows
    overlap, they are averaged with weights that sum to one."""
    ids = torch.randint(V, (2, *TRAINED))
    assert torch.equal(editing.to_pixels(tokenizer, ids, TRAINED), tokenizer.decode(ids))
    ids = torch.randint(V, (2, 6, 9))
    with patch.object(tokenizer, "decode", side_effect=tokenizer.decode) as decoded:
        whole = editing.to_pixels(tokenizer, ids, TRAINED)
    assert {call.args[0].shape[1:] for call in decoded.call_args_list} == {TRAINED}
    assert whole.shape == (2, 3, 24, 36)
    corner = tokenizer.decode(ids[:, :3, :5])
    torch.testing.assert_close(whole[:, :, :4, :8], corner[:, :, :4, :8])      # in no other window
    with patch.object(tokenizer, "decode", side_effect=lambda part: torch.full(
            (len(part), 3, 12, 20), 0.25)):
        flat = editing.to_pixels(tokenizer, ids, TRAINED)
    torch.testing.assert_close(flat, torch.full_like(flat, 0.25))
