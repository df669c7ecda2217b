"""The command that repeats the paper's ablations: its variant, its tables, and interruptions."""

import json
import re

import pytest
import torch

from arpg_mini import ARPG, ModelConfig
from arpg_mini.decoding import decode, decode_sequential
from tests.helpers import ROOT, tiny_model
from tutorial import claims

TINY = claims.Size(pictures=80, tokenizer_steps=4, judge_steps=3, steps=2, batch=4, width=32,
                   drawn=10)


def per_layer(model: ARPG) -> claims.PerLayerKV:
    """The variant with the same weights: every layer gets a copy of the shared projection."""
    own = claims.PerLayerKV(model.config).to(torch.float64)
    state = model.state_dict()
    state["kv.weight"] = state["kv.weight"].repeat(len(model.query), 1)
    own.load_state_dict(state)
    return own


@pytest.fixture
def variant():
    model = per_layer(tiny_model())
    torch.nn.init.normal_(model.kv.weight, std=0.5)
    return model


def logits(model: ARPG) -> torch.Tensor:
    g = torch.Generator().manual_seed(5)
    tokens = torch.randint(11, (2, 15), generator=g)
    orders = torch.stack([torch.randperm(15, generator=g) for _ in range(2)])
    return model(tokens, torch.tensor([2, 0]), orders)


def test_layers_with_equal_projections_equal_layers_that_share_one(variant):
    """Broken if a layer gets another's keys or values, or its own values as keys."""
    model = tiny_model()
    assert torch.allclose(logits(per_layer(model)), logits(model), atol=1e-9)
    assert not torch.allclose(logits(variant), logits(model), atol=1e-2)


@pytest.mark.parametrize("layer", range(3))
def test_every_layer_of_the_variant_has_a_projection_of_its_own(variant, layer):
    """Broken if a layer's own keys and values are not used: then its weights change nothing."""
    before, width = logits(variant), 2 * variant.config.dim
    with torch.no_grad():
        variant.kv.weight[layer * width:(layer + 1) * width] += 0.3
    assert not torch.allclose(logits(variant), before, atol=1e-3)


@pytest.mark.parametrize("within", ["block", "causal"])
def test_the_variants_cache_is_no_approximation(variant, within):
    """Broken if a layer's keys and values overwrite another's, or are not written."""
    how = dict(steps=[2, 1, 5, 4, 3], guidance=2.5, within_step=within)
    cached = decode(variant, [2, 0], [3, 8], **how)
    assert torch.equal(cached, decode_sequential(variant, [2, 0], [3, 8], **how))


def test_a_fresh_variant_knows_nothing_and_has_the_models_other_weights():
    config = ModelConfig()
    model, own = ARPG(config), claims.PerLayerKV(config)
    assert (own.head.weight == 0).all() and (own.embedding.weight == 0).sum() == 0
    more = sum(p.numel() for p in own.parameters()) - sum(p.numel() for p in model.parameters())
    assert more == (config.query_layers - 1) * 2 * config.dim**2
    assert 0.018 < own.kv.weight.std() < 0.022


def test_tables_are_made_kept_shown_and_written(tmp_path, monkeypatch, capsys):
    """An interrupted table continues after the parts that are done, and does not change them."""
    monkeypatch.setattr(claims, "RESULTS", tmp_path / "results.json")
    claims.RESULTS.write_text('{"ch01.x": {"value": 1, "command": "c", "machine": "m"}}')
    out, names = tmp_path / "deep" / "claims.json", ["sharing"]
    monkeypatch.setattr(claims, "measure", stopping := Stopping(claims.measure, after=3))
    with pytest.raises(KeyboardInterrupt):
        claims.work(out, names, TINY)
    before = json.loads(out.read_text())["parts"]
    assert set(before) == {"sharing 0"}
    stopping.after = 10**9
    claims.work(out, names, TINY, "the command")
    said, state = capsys.readouterr().out, json.loads(out.read_text())
    assert len(state["parts"]) == 3 and before.items() <= state["parts"].items()
    assert stopping.calls == 3 + 3 * 2 - 2
    assert re.search(r"^per layer .*\d\.\d\d\d ± \d\.\d\d\d", said, re.M)
    results = json.loads(claims.RESULTS.read_text())
    assert "ch01.x" in results and len(results) == 1 + 2 * 2 * 5
    values = [part["per layer"]["nats"] for part in state["parts"].values()]
    found = {end: results[f"claims.sharing.per_layer.nats{end}"] for end in ("", ".error")}
    error = torch.tensor(values, dtype=torch.float64).std().item() / 3**0.5
    assert abs(found[""]["value"] - sum(values) / 3) < 1e-5
    assert abs(found[".error"]["value"] - error) < 1e-5
    assert found[""]["command"] == "the command" and "cores" in found[""]["machine"]
    assert results["claims.sharing.3_3.pairs"]["value"] == 4
    assert results["claims.sharing.per_layer.pairs"]["value"] == 6


class Stopping:
    """A function that is interrupted when it is called more than `after` times."""

    def __init__(self, work, after):
        self.work, self.after, self.calls = work, after, 0

    def __call__(self, *arguments):
        if self.calls == self.after:
            raise KeyboardInterrupt
        self.calls += 1
        return self.work(*arguments)


def test_the_chapters_can_quote_the_keys():
    """Broken if two rows of a table get the same key, or a key that the chapters can't quote."""
    for name, (_, rows) in claims.TABLES.items():
        table = {row: {"accuracy": (0.5, 0.1)} for row in rows}
        keys = claims.entries(name, table, "c")
        assert len(keys) == 2 * len(rows)
        assert all(re.fullmatch(r"[\w.]+", key) for key in keys)


@pytest.mark.parametrize("arguments, said", [
    (["--only", "nothing"], "--only"), (["--steps", "3"], "--steps"),
    (["--out", "torn.json"], "torn.json"), (["--out", "other.json"], "other.json"),
    (["--out", "torn.json/claims.json"], "torn.json")])
def test_mistakes_end_in_one_line(mistake, tmp_path, arguments, said):
    (tmp_path / "torn.json").write_text('{"size": ')
    (tmp_path / "other.json").write_text('{"size": {"steps": 3}, "parts": {}, "seconds": {}}')
    assert said in mistake(claims, *arguments)


@pytest.mark.slow
def test_all_tables(tmp_path):
    claims.work(tmp_path / "claims.json", list(claims.TABLES), TINY)


def test_it_is_short_enough_to_read():
    assert len((ROOT / "tutorial" / "claims.py").read_text().splitlines()) < 300
