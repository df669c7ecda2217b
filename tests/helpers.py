"""What several tests need: tiny models with weights large enough for mistakes to show."""

import json
from pathlib import Path

import numpy as np
import torch

from arpg_mini import ARPG, ModelConfig
from tests.golden.recipe import tensor

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"


def tiny_model(dtype=torch.float64, seed=0, **sizes) -> ARPG:
    """A model whose weights are of order one: attention is peaked, so a wrong key changes the
    result."""
    sizes = {"dim": 24, "content_layers": 2, "query_layers": 3, "heads": 2, "ffn_hidden": 40,
             "vocab_size": 11, "num_classes": 3, "grid": (3, 5), "dropout": 0.0} | sizes
    torch.manual_seed(seed)
    model = ARPG(ModelConfig(**sizes)).to(dtype)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
        else:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    return model


class FakeIds:
    """Twenty pictures of two views; view 1 of a picture is its view 0 plus one."""

    def __init__(self, n=15):
        first = np.random.default_rng(0).integers(0, 10, (20, 1, n))
        self.ids = np.concatenate([first, first + 1], axis=1).astype(np.uint16)
        self.labels = np.arange(20) % 3

    def __len__(self):
        return 20


def golden(name: str) -> tuple[dict, dict, dict]:
    """A golden file: its arrays, its configuration, and the released names filled by the recipe."""
    arrays = dict(np.load(GOLDEN / name))
    meta = json.loads(str(arrays.pop("meta")))
    state = {n: torch.from_numpy(np.asarray(tensor(n, tuple(shape), meta["config"]["salt"])))
             for n, shape in meta["shapes"].items()}
    return {k: torch.from_numpy(v) for k, v in arrays.items()}, meta["config"], state


def golden_arpg() -> tuple[ARPG, dict, dict]:
    """The golden model: released names mapped to ours, with the fused products put together."""
    arrays, config, released = golden("arpg_tiny.npz")
    ours = {"embedding.weight": released.pop("embeddings.weight"),
            "head.weight": released.pop("head.weight"), "norm.gain": released.pop("norm.weight"),
            "kv_norm.gain": released.pop("layers.norm.weight"),
            "kv.weight": torch.cat([released.pop("layers.to_k.weight"),
                                    released.pop("layers.to_v.weight")])}
    layers = config["depth"] // 2
    for theirs, mine in (("self_dec", "content"), ("cross_dec", "query")):
        for i in range(layers):
            def take(name):
                return released.pop(f"layers.{theirs}.{i}.{name}.weight")
            if mine == "content":
                ours[f"{mine}.{i}.attention.qkv.weight"] = torch.cat(
                    [take(f"attn.to_{x}") for x in "qkv"])
            else:
                ours[f"{mine}.{i}.attention.q.weight"] = take("attn.to_q")
            ours[f"{mine}.{i}.attention.out.weight"] = take("attn.proj")
            ours[f"{mine}.{i}.ffn.w13.weight"] = torch.cat([take("ffn.w1"), take("ffn.w3")])
            ours[f"{mine}.{i}.ffn.w2.weight"] = take("ffn.w2")
            ours[f"{mine}.{i}.attention_norm.gain"] = take("attn_norm")
            ours[f"{mine}.{i}.ffn_norm.gain"] = take("ffn_norm")
    assert not released, f"released tensors without a place: {list(released)}"
    model = ARPG(ModelConfig(dim=config["dim"], content_layers=layers, query_layers=layers,
                             heads=config["heads"], vocab_size=config["vocab_size"],
                             num_classes=config["num_classes"],
                             grid=(config["grid"], config["grid"]),
                             ffn_hidden=ours["content.0.ffn.w2.weight"].shape[1]))
    model.load_state_dict(ours)
    return model.eval(), arrays, config
