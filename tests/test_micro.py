"""The whole idea in one file: it computes what the package computes, and it learns."""

import ast
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from arpg_mini import ARPG, ModelConfig
from arpg_mini.decoding import decode
from tests.helpers import ROOT
from tutorial import micro_arpg

V, C, GRID = 5, 3, (3, 4)
FILE = ROOT / "tutorial" / "micro_arpg.py"


@pytest.fixture(scope="module")
def pair():
    """A micro model in float64, with weights of order one, and the package's model with the same
    weights."""
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        micro = micro_arpg.MicroARPG(V, C, *GRID, dim=24, heads=3, hidden=20)
        for p in micro.parameters():
            torch.nn.init.normal_(p, mean=1.0 if p.ndim == 1 else 0.0, std=0.4)
    finally:
        torch.set_default_dtype(torch.float32)
    whole = ARPG(ModelConfig(dim=24, content_layers=2, query_layers=2, heads=3, vocab_size=V,
                             num_classes=C, grid=GRID, ffn_hidden=20, dropout=0.0,
                             rope_base=100.0)).double()
    theirs, ours = micro.state_dict(), {}

    def stack(*names):
        return torch.cat([theirs[f"{name}.weight"] for name in names])
    for kind, joint in (("content", ("q", "k", "v")), ("query", ("q",))):
        for i in (0, 1):
            at = f"{kind}.{i}."
            ours |= {f"{at}attention_norm.gain": stack(f"{at}attention_norm"),
                     f"{at}attention.{''.join(joint)}.weight": stack(*(at + x for x in joint)),
                     f"{at}attention.out.weight": stack(f"{at}out"),
                     f"{at}ffn_norm.gain": stack(f"{at}ffn_norm"),
                     f"{at}ffn.w13.weight": stack(f"{at}w1", f"{at}w3"),
                     f"{at}ffn.w2.weight": stack(f"{at}w2")}
    ours |= {"embedding.weight": stack("embedding"), "kv_norm.gain": stack("kv_norm"),
             "kv.weight": stack("k", "v"), "norm.gain": stack("norm"), "head.weight": stack("head")}
    whole.load_state_dict(ours)
    return micro, whole


def random_case(batch=4):
    g = torch.Generator().manual_seed(3)
    n = math.prod(GRID)
    tokens, labels = (torch.randint(m, s, generator=g) for m, s in ((V, (batch, n)), (C, (batch,))))
    return tokens, labels, torch.rand(batch, n, generator=g).argsort(dim=1)


def test_logits_are_the_packages(pair):
    """Broken if any formula of either pass differs: norms, rotations, masks, the zero class key."""
    micro, whole = pair
    case = random_case()
    assert torch.allclose(micro(*case), whole(*case), atol=1e-9, rtol=0)
    assert micro(*case).std() > 0.1


@pytest.mark.parametrize("steps", [1, 4, 7, 12])
def test_decoded_ids_are_the_packages(pair, steps):
    """Broken if the cache, the step sizes, block attention within a step or the draw differ."""
    micro, whole = pair
    _, labels, orders = random_case()
    noise = torch.stack([torch.from_numpy(np.random.default_rng([2, seed]).random(12))
                         for seed in range(4)])         # the package's own, by seed and position
    mine = micro_arpg.decode(micro, labels, orders, noise, steps)
    ours = decode(whole, labels, range(4), steps=steps, guidance=1, orders=orders)
    assert torch.equal(mine, ours)
    assert len(mine.unique()) > 2


def test_one_token_per_step_gives_the_training_logits(pair):
    """Broken if the cached decode approximates the model: drawn ids must be those that the training
    forward draws from the same noise."""
    micro, _ = pair
    _, labels, orders = random_case()
    g = torch.Generator().manual_seed(1)
    noise = torch.rand(orders.shape, generator=g, dtype=torch.float64)
    tokens = micro_arpg.decode(micro, labels, orders, noise, steps=12)
    cumulative = micro(tokens, labels, orders).softmax(-1).cumsum(-1)
    drawn = (cumulative[..., :-1] <= noise.gather(1, orders)[..., None]).sum(-1)
    assert torch.equal(drawn, tokens.gather(1, orders))


@pytest.mark.slow
def test_a_new_model_knows_nothing_and_a_short_run_learns(capsys):
    """The first loss is ln V. In 60 steps it falls far below what the colours of a picture alone
    would give (ln 2 per token)."""
    torch.manual_seed(0)
    pictures = micro_arpg.all_pictures()
    model = micro_arpg.MicroARPG(6, 2, 8, 8)
    labels = torch.arange(64) % 2
    tokens = pictures[labels, torch.randint(240, (64,))]
    assert micro_arpg.loss_of(model, tokens, labels).item() == pytest.approx(math.log(6), abs=1e-6)
    micro_arpg.train(model, pictures, steps=60)
    assert micro_arpg.loss_of(model, tokens, labels).item() < 0.4
    assert capsys.readouterr().out.startswith("step    0   loss 1.792")


def test_a_picture_is_right_if_every_cell_is():
    pictures = micro_arpg.all_pictures()
    assert pictures.shape == (2, 240, 64) and pictures.max() == 5
    labels = torch.arange(40) % 2
    tokens = pictures[labels, torch.arange(40) * 6]
    assert micro_arpg.how_good(tokens, labels, pictures) == (1, 1)
    tokens[:10, 27] = (tokens[:10, 27] + 1) % 6         # one wrong cell in ten of forty
    assert micro_arpg.how_good(tokens, labels, pictures) == (0.75, 1 - 0.25 / 64)
    right, cells = micro_arpg.how_good(tokens, 1 - labels, pictures)
    assert right < 0.5 and cells < 0.9


def test_the_picture_shows_the_tokens(tmp_path):
    pictures = micro_arpg.all_pictures()
    micro_arpg.write_png(tmp_path / "x.png", [pictures[0, 100:103], pictures[1, 200:203]], cell=2)
    with Image.open(tmp_path / "x.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (2 * 9 * 2, 3 * 9 * 2, 3)
    assert tuple(pixels[18, 0]) == micro_arpg.RGB[pictures[1, 200, 0]]
    assert tuple(pixels[17, 0]) == (255, 255, 255)


def test_it_is_short_and_stands_alone():
    """At most 250 lines, importing torch, Pillow and the standard library only."""
    text = FILE.read_text()
    assert len(text.splitlines()) <= 250
    names = {(node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
             for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)}
    assert names <= {"torch", "PIL", *sys.stdlib_module_names}
