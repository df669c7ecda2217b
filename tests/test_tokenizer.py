"""The tokenizer: shapes, the straight-through gradient, and the codebook's losses and rows."""

import math
from itertools import product

import pytest
import torch
from torch.nn import functional as F

from arpg_mini import TokenizerConfig, VQTokenizer
from arpg_mini.tokenizer import PixelNorm

SMALL = dict(channels=32, multipliers=(1, 1, 2), encoder_blocks=1, decoder_blocks=1,
             latent_channels=16, codebook_size=20, code_dim=4)


def tokenizer(**changes) -> VQTokenizer:
    torch.manual_seed(0)
    return VQTokenizer(TokenizerConfig(**SMALL | changes))


@pytest.mark.parametrize("local", [False, True])
def test_encode_and_decode_have_the_promised_shapes_and_ranges(local):
    model = tokenizer(local_encoder=local)
    ids = model.encode(torch.rand(2, 3, 12, 20) * 2 - 1)
    assert ids.shape == (2, 3, 5) and ids.dtype == torch.long and 0 <= ids.min() and ids.max() < 20
    images = model.decode(ids)
    assert images.shape == (2, 3, 12, 20) and images.abs().max() <= 1


def test_sides_that_are_no_multiple_of_the_stride_are_refused():
    with pytest.raises(ValueError, match="13×20.*stride, 4"):
        tokenizer().encode(torch.zeros(1, 3, 13, 20))


def test_nearest_is_the_smallest_distance_between_unit_vectors():
    """Compared with the definition, on rows of very different norms. Broken if a row wins because
    of its norm."""
    book = tokenizer().codebook
    with torch.no_grad():
        book.rows.mul_(torch.linspace(0.1, 10, 20)[:, None])
    features = F.normalize(torch.randn(7, 3, 4), dim=-1)
    distances = (features[..., None, :] - F.normalize(book.rows, dim=-1)).norm(dim=-1)
    assert torch.equal(book.nearest(features), distances.argmin(-1))
    torch.testing.assert_close(book.lookup(torch.tensor([3])).norm(), torch.tensor(1.0))


def test_the_straight_through_gradient_passes_the_rounding():
    """The encoder's feature gets the decoder's gradient as if it were the code. The codebook gets
    none of it."""
    model = tokenizer()
    features = model.features(torch.rand(2, 3, 8, 8)).detach().requires_grad_()
    model.features = lambda images: features
    _, losses, _, ids = model(torch.zeros(2, 3, 8, 8))
    gradient, = torch.autograd.grad(losses["reconstruction"], features, retain_graph=True)
    codes = model.codebook.lookup(ids).view(features.shape).detach().requires_grad_()
    out = model.reconstruct(codes)
    expected, = torch.autograd.grad(F.mse_loss(out, torch.zeros_like(out))
                                    + F.l1_loss(out, torch.zeros_like(out)), codes)
    torch.testing.assert_close(gradient, expected)
    assert torch.autograd.grad(losses["reconstruction"], model.codebook.rows,
                               allow_unused=True)[0] is None


def test_codebook_loss_moves_rows_only_and_commitment_moves_features_only():
    model = tokenizer()
    _, losses, _, _ = model(torch.rand(2, 3, 8, 8))
    rows, encoder = model.codebook.rows, model.to_code.weight
    both = [torch.autograd.grad(losses[name], (rows, encoder), allow_unused=True, retain_graph=True)
            for name in ("codebook", "commitment")]
    assert both[0][0].abs().sum() > 0 and both[0][1] is None
    assert both[1][0] is None and both[1][1].abs().sum() > 0
    torch.testing.assert_close(losses["commitment"], 0.25 * losses["codebook"])


def test_dead_rows_are_revived_onto_features_and_live_ones_left_alone():
    book, generator = tokenizer().codebook, torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(50, 4), dim=-1)
    ids = torch.arange(10).repeat(5)                             # rows 10..19 are never used
    before = book.rows.detach().clone()
    for _ in range(2):
        assert book.revive(features, ids, patience=3, generator=generator) == 0
    assert book.revive(features, ids, patience=3, generator=generator) == 10
    assert torch.equal(book.rows[:10], before[:10])
    assert (book.rows[10:, None] == features).all(-1).any(1).all()
    assert book.revive(features, ids, patience=3, generator=generator) == 0


def test_fit_finds_separate_clusters_of_unequal_size():
    """One cluster holds 95 % of the features; the other nineteen must still get a row each."""
    generator = torch.Generator().manual_seed(1)
    centres = F.normalize(torch.randn(20, 4, generator=generator), dim=-1)
    sizes = [3800] + [10] * 19
    features = torch.cat([centres[i].expand(n, 4) for i, n in enumerate(sizes)])
    features = F.normalize(features + 0.001 * torch.randn(features.shape, generator=generator),
                           dim=-1)
    book = tokenizer().codebook
    book.fit(features[torch.randperm(len(features), generator=generator)], generator)
    assert (1 - (centres @ book.rows.T).max(1).values).max() < 0.01


def test_the_norm_of_a_local_encoder_is_its_definition():
    """Each pixel's channels by their root mean square, also where it is near the 1e-6 under it."""
    norm = PixelNorm(5).double()
    torch.nn.init.normal_(norm.gain)
    for size in (1e-4, 1e-3, 1.0, 30.0):
        x = size * torch.randn(2, 5, 3, 4, dtype=torch.float64)
        expected = torch.empty_like(x)
        for b, r, c in product(range(2), range(3), range(4)):
            pixel = x[b, :, r, c]
            rms = math.sqrt(float((pixel**2).sum()) / 5 + 1e-6)
            expected[b, :, r, c] = pixel / rms * norm.gain.flatten()
        torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=0)


def test_a_local_encoder_sees_only_its_own_few_pixels():
    """A change in one corner changes only features near it. A flat picture has the same feature
    everywhere, also at its borders. With the released encoder both are false."""
    image = torch.rand(1, 3, 32, 32)
    changed = image.clone()
    changed[..., :4, :4] = 1 - changed[..., :4, :4]
    local, released = tokenizer(local_encoder=True), tokenizer()
    difference = (local.features(image) - local.features(changed)).abs().sum(-1)[0]
    assert difference[0, 0] > 0 and difference[2:].sum() == 0 and difference[:, 2:].sum() == 0
    assert (released.features(image) - released.features(changed)).abs().sum(-1)[0, -1, -1] > 0
    flat = torch.full((1, 3, 32, 32), 0.3)
    torch.testing.assert_close(*(local.features(flat)[0, r, c] for r, c in ((0, 0), (4, 3))))
    assert (released.features(flat)[0, 0, 0] - released.features(flat)[0, 4, 3]).abs().max() > 1e-3
