"""Import and export of the authors' file layout: names, sizes, wrappers, and wrong files."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import sample_mini
from arpg_mini import ARPG, ModelConfig, TokenizerConfig, UserError, VQTokenizer, pretrained
from arpg_mini.run import checkpoint, drawing, export
from tests.helpers import ROOT, tiny_model
from tests.test_tokenizer import SMALL

SIZES = dict(dim=64, heads=1, content_layers=2, query_layers=2, vocab_size=30, num_classes=5,
             grid=(16, 16), ffn_hidden=96)
VQ = dict(channels=32, multipliers=(1, 1, 1, 1, 2), encoder_blocks=1, decoder_blocks=2,
          latent_channels=32, codebook_size=30, code_dim=4)


def filled(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module.eval()


@pytest.fixture
def arpg() -> ARPG:
    return filled(ARPG(ModelConfig(**SIZES)))


def saved(path, content):
    torch.save(content, path)
    return path


def same(a, b) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_export_then_import_is_the_identity(tmp_path, arpg):
    """Broken if export and import split, stack or name a tensor differently."""
    vq = filled(VQTokenizer(TokenizerConfig(**VQ)))
    state = export.released(arpg)
    again = pretrained.load_released_arpg(saved(tmp_path / "arpg.pt", {"model": state}))
    assert same(arpg, again) and again.config == ModelConfig(**SIZES) and not again.training
    vq_again = pretrained.load_released_tokenizer(
        saved(tmp_path / "vq.pt", {"model": export.released(vq)}))
    assert same(vq, vq_again) and vq_again.config == vq.config
    assert all(torch.equal(t, state[n]) for n, t in export.released(again).items())
    assert state["layers.self_dec.1.attn.to_k.weight"].shape == (64, 64)
    assert export.released(vq)["quantize.codebook_used"].shape == (65536,)


@pytest.mark.parametrize("wrap", [
    lambda s: s, lambda s: {"model": s, "steps": 3}, lambda s: {"ema": s, "model": {}},
    lambda s: {"state_dict": s}, lambda s: {"module": {f"module.{n}": t for n, t in s.items()}},
    lambda s: {f"_orig_mod.{n}": t for n, t in s.items()}])
def test_wrapped_and_bare_weights_load_the_same(tmp_path, arpg, wrap):
    path = saved(tmp_path / "arpg.pt", wrap(export.released(arpg)))
    assert same(arpg, pretrained.load_released_arpg(path))


def test_an_old_format_file_and_half_precision(tmp_path, arpg):
    torch.save(export.released(arpg), tmp_path / "old.pt",
               _use_new_zipfile_serialization=False)
    model = pretrained.load_released_arpg(tmp_path / "old.pt", dtype=torch.bfloat16)
    assert same(model, arpg.bfloat16())


def test_tensors_that_do_not_belong_are_named(tmp_path, arpg):
    """Broken if a tensor is skipped silently."""
    state, path = export.released(arpg), tmp_path / "arpg.pt"
    some = "layers.cross_dec.1.attn.proj.weight"
    for change, says in (
            ({some: None}, f"lacks {some}"),
            ({"layers.extra": torch.ones(1)}, "has layers.extra, which this model has no place"),
            ({some: torch.ones(64, 65)}, rf"{some} is \(64, 65\); .* it would be \(64, 64\)"),
            ({"embeddings.weight": None}, "is no such released model: lacks embeddings"),
            ({"embeddings.weight": torch.ones(64)}, ".* lacks embeddings.weight"),
            ({"embeddings.weight": torch.ones(30, 64)}, "num_classes -3"),
            ({n: None for n in state if "self_dec" in n}, ".* lacks layers.self_dec.0"),
                ({n: None for n in state if "cross_dec" in n}, "query_layers 0")):
        changed = {n: t for n, t in (state | change).items() if t is not None}
        with pytest.raises(UserError, match=f"arpg.pt: {says}"):
            pretrained.load_released_arpg(saved(path, changed))
    with pytest.raises(UserError, match="head_dim 48 does not divide its width, 64"):
        pretrained.load_released_arpg(saved(path, state), head_dim=48)
    with pytest.raises(UserError, match="lacks encoder.conv_in.weight"):
        pretrained.load_released_tokenizer(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken",
                                     b"\x80\x02cos\nsystem\n(S'ls'\ntR."])
def test_files_that_are_no_checkpoint(tmp_path, content):
    (tmp_path / "arpg.pt").write_bytes(content)
    for load in (pretrained.load_released_arpg, checkpoint.load_any_tokenizer):
        with pytest.raises(UserError, match="arpg.pt: not a readable checkpoint"):
            load(tmp_path / "arpg.pt")
    with pytest.raises(UserError, match="nowhere.pt: no such file"):
        pretrained.load_released_arpg(tmp_path / "nowhere.pt")
    with pytest.raises(UserError, match="holds no tensors by name"):
        pretrained.load_released_arpg(saved(tmp_path / "list.pt", [torch.ones(2)]))


def test_what_the_released_code_lacks_is_not_exported():
    for model, says in ((tiny_model(), r"grid \(3, 5\): the released code only knows \(3, 3\)"),
                        (tiny_model(grid=(3, 3)), "query_layers 3: .* knows 2"),
                        (tiny_model(rope_base=100.0), "rope_base 100.0: .* knows 10000.0"),
                        (VQTokenizer(TokenizerConfig(**SMALL, local_encoder=True)), "local_enc")):
        with pytest.raises(UserError, match=says):
            export.released(model)


def test_the_papers_guidance_depends_on_the_size():
    by_layers = {n: ModelConfig(content_layers=n, query_layers=n) for n in (12, 18, 24, 3)}
    assert [drawing.best_guidance(by_layers[n], 32) for n in (12, 18, 24)] == [5.4, 6.6, 6.5]
    assert [drawing.best_guidance(by_layers[n], 64) for n in (12, 18, 24)] == [5.1, 5.3, 6.3]
    assert drawing.best_guidance(by_layers[12], 20) == 5.4
    assert drawing.best_guidance(by_layers[3], 64) == 4.0


def test_both_commands(tmp_path, monkeypatch, capsys, arpg):
    """A run is exported to the authors' layout. The files are then used like released weights."""
    monkeypatch.chdir(tmp_path)
    vq = filled(VQTokenizer(TokenizerConfig(**VQ)))
    state = arpg.state_dict()
    (tmp_path / "run").mkdir()
    checkpoint.save(tmp_path / "run" / "model.pt", "model", config=vars(arpg.config), ema=state)
    checkpoint.save_tokenizer(tmp_path / "run" / "tokenizer.pt", vq)
    command = ["pretrained", "run", "--arpg", "arpg.pt", "--tokenizer", "vq.pt"]
    monkeypatch.setattr(sys, "argv", command)
    assert export.main() == 0
    assert same(pretrained.load_released_arpg("arpg.pt"), arpg)
    monkeypatch.setattr(sys, "argv", ["pretrained", "run", "--arpg", "run/model.pt"])
    assert export.main() == 2 and "neither of them the run's" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", command[:2])
    assert export.main() == 2 and "nothing to write" in capsys.readouterr().err

    def draw(*flags):
        monkeypatch.setattr(sys, "argv", ["sample_mini.py", *flags])
        return sample_mini.main()

    released = ["--released", "arpg.pt", "--tokenizer", "vq.pt"]
    assert draw(*released, "--classes", "4,2", "--steps", "3", "--npz", "two.npz") == 0
    with np.load("two.npz") as file:
        assert file["arr_0"].shape == (2, 256, 256, 3) and file["arr_1"].tolist() == [4, 2]
    capsys.readouterr()
    for flags, says in (
            (released[:2], "--released FILE and --tokenizer FILE go together"),
            ([], "give a run folder or --released FILE"), (["run", *released], "one of the two"),
            ([*released, "--out", "arpg.pt"], "--out arpg.pt: must end in .png"),
            ([*released, "--classes", "5"], "--classes '5': must be 0 to 4"),
            (["--released", "vq.pt", "--tokenizer", "vq.pt"], "vq.pt: is no such released model")):
        assert draw(*flags) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_full_size_file_loads_in_little_more_than_its_model():
    """Broken if loading ARPG-L (1.28 GB) in bfloat16 takes more than 1.3 times the model plus the
    file's largest tensor."""
    command = [sys.executable, "-m", "tests.golden.full_size", "arpg-l", "--dtype", "bfloat16",
               "--steps", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()[1].split()
    times, largest = float(words[words.index("times") - 1]), float(words[-2])
    assert times < 1.3 + largest / 0.64, done.stdout
