"""The two scripts as a user runs them: tiny runs from start to end, interruption, and mistakes,
which end in one line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

import sample_mini
import train_mini
from arpg_mini import TokenizerConfig, VQTokenizer
from arpg_mini.decoding import decode
from arpg_mini.run import drawing
from arpg_mini.run.checkpoint import load_model
from arpg_mini.run.export import released
from tests.helpers import ROOT, TINY, Copy, run, weights


def test_a_run_leaves_what_it_promises_and_says_what_is_next(finished):
    out, done = finished
    assert {p.name for p in out.iterdir()} == {
        ".lock", "best.pt", "config.json", "ids", "log.csv", "model.pt", "model-00000005.pt",
        "samples", "samples.png", "tokenizer.pt"}
    assert {p.name for p in (out / "samples").iterdir()} == {f"step-0000000{i}.png"
                                                             for i in range(1, 7)}
    assert {p.name for p in (out / "ids").iterdir()} == {
        f"{part}.{kind}" for part in ("train", "val") for kind in ("json", "npy", "labels.npy")}
    assert "broken.png" in done.stderr and "bits per token" in done.stdout
    assert f"sample_mini.py {out}" in done.stdout
    assert json.loads((out / "config.json").read_text())["classes"] == ["cat", "dog"]
    lines = (out / "log.csv").read_text().splitlines()
    assert len(lines) == 7 and lines[-1].split(",")[3]         # a validation loss in the last row
    with Image.open(out / "samples.png") as sheet:
        assert sheet.height > 5 * 64                           # rows for 1, 2, 4, 8, 16 steps


def test_samples_grids_animations_and_npz(finished, tmp_path):
    out, _ = finished
    run("sample_mini.py", out, "--classes", "dog,0", "--count", 7, "--steps", 3,
        "--order", "spiral", "--columns", 4, "--out", tmp_path / "s.png",
        "--gif", tmp_path / "s.gif", "--npz", tmp_path / "s.npz", "--batch-size", 3)
    with np.load(tmp_path / "s.npz") as file:
        pictures, labels = file["arr_0"], file["arr_1"]
    assert pictures.shape == (7, 16, 16, 3) and labels.tolist() == [1, 0, 1, 0, 1, 0, 1]
    with Image.open(tmp_path / "s.gif") as gif:
        assert gif.n_frames == 4
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.size == (4 * 66 - 2, 2 * 66 - 2)
    run("sample_mini.py", out, "--classes", "1,0", "--count", 7, "--steps", 3, "--order", "spiral",
        "--npz", tmp_path / "t.npz", "--gpus", 2, "--device", "cpu")
    with np.load(tmp_path / "t.npz") as file:  # other batches, two processes: same images
        assert (file["arr_0"] == pictures).mean() > 0.99
    assert not (tmp_path / "samples.png").exists()


@pytest.mark.parametrize("flags, dtype", [
    ([], torch.float32), (["--precision", "bfloat16"], torch.bfloat16)])
def test_precision_is_that_of_weights_and_products(flags, dtype, finished):
    options = sample_mini.parse([str(finished[0]), *flags])
    sample_mini.check(options)
    drawer = drawing.load(options, torch.device("cpu"))
    assert {p.dtype for p in drawer.model.parameters()} == {dtype}
    with patch.object(drawer.model.head, "forward", wraps=drawer.model.head.forward) as head:
        ids = decode(drawer.model, [0, 1], [0, 1], steps=3)
    assert {call.args[0].dtype for call in head.call_args_list} == {dtype}
    assert drawer.pixels(ids.view(2, *drawer.model.config.grid)).dtype == torch.float32


def test_an_interrupted_run_goes_on_to_the_same_bits(finished, pictures, tmp_path):
    """A run gets SIGTERM in the middle, then continues with --resume. Its weights are those of a
    run that was never stopped."""
    out, steps = tmp_path / "again", [*TINY[2:], "--steps", "40"]
    process = Copy([str(ROOT / "train_mini.py"), "--data", str(pictures), "--side", "16", *steps,
                    "--out", str(out), "--device", "cpu", "--save-every", "20"])
    while not (out / "log.csv").exists() or len((out / "log.csv").read_text().splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    done = process.end(timeout=60)
    assert done.returncode == 128 + signal.SIGTERM and f"--resume --out {out}" in done.stderr
    assert 0 < weights(out)["step"] < 40
    run("train_mini.py", "--resume", "--out", out, "--device", "cpu", "--save-every", 20)
    whole = tmp_path / "whole"
    run("train_mini.py", "--data", pictures, "--side", 16, *steps, "--out", whole,
        "--device", "cpu", "--save-every", 20)
    a, b = weights(out), weights(whole)
    assert a["step"] == b["step"] == 40
    assert all(torch.equal(a[k][name], b[k][name]) for k in ("model", "ema") for name in a[k])
    rows = [[line.split(",")[i] for i in (0, 1, 3, 4)] for f in (out, whole)
            for line in (f / "log.csv").read_text().split()]
    assert rows[:len(rows) // 2] == rows[len(rows) // 2:]


def test_a_mistake_in_two_processes_ends_in_one_line(finished, tmp_path):
    done = run("sample_mini.py", finished[0], "--steps", 17, "--gpus", 2, "--device", "cpu", code=2,
               cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert "sample_mini.py: error: --steps 17: these images have 16 tokens" in done.stderr


@pytest.mark.parametrize("arguments, says", [
    (["--preset", "huge"], "--preset huge: must be one of shapes"),
    (["--data", "/no/such"], "--data /no/such: no such folder"),
    (["--steps", "0"], "--steps 0: must be 1 or more"),
    (["--steps", "many"], "--steps"),
    (["--gpus", "0", "--device", "cpu"], "--gpus 0: must be 1 or more"),
    (["--gpus", "8"], "--gpus 8: this machine has"),
    (["--views", "side"], "--views side: must be one of center, center-flip, ten-crop"),
    (["--views", "ten-crop"], "--views ten-crop: needs larger pictures"),
    (["--micro-batch", "0"], "--micro-batch 0: must be 1 or more"),
    (["--keep", "0"], "--keep 0: must be 1 or more"),
    (["--precision", "float16"], "--precision"),
    (["--gpus", "3", "--batch-size", "64", "--device", "cpu"],
     "--batch-size 64: must be a multiple of --gpus 3"),
    (["--device", "tpu"], "--device tpu: must be cpu or cuda"),
    (["--dropout", "1"], "--dropout 1.0: must be 0 or more and below 1"),
    (["--lr", "nan"], "--lr nan"),
    (["--resume"], "--resume: .*config.json"),
    (["--preset", "arpg-l", "--data", "."], "--preset arpg-l: needs a trained tokenizer"),
    (["--tokenizer", "/no/tokenizer.pt"], "--tokenizer /no/tokenizer.pt: no such file"),
])
def test_mistakes_in_training_end_in_one_line(arguments, says, mistake, tmp_path):
    assert re.search(says, mistake(train_mini, "--out", tmp_path / "x", *arguments))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("arguments, says", [
    (["--steps", "17"], "--steps 17: these images have 16 tokens"),
    (["--classes", "2"], "--classes '2': must be 0 to 1"),
    (["--classes", "cow"], "--classes 'cow'"),
    (["--order", "zigzag"], "--order zigzag: must be one of random"),
    (["--top-p", "0"], "--top-p 0.0"), (["--temperature", "-1"], "--temperature -1.0"),
    (["--count", "0"], "--count 0"), (["--steps", "0"], "--steps 0"),
    (["--guidance", "nan"], "--guidance nan"), (["--out", "."], "--out .: is a folder"),
    (["--schedule", "linear"], "--schedule linear: must be one of arccos"),
    (["--npz", "/no/such/x.npz"], "--npz /no/such/x.npz"),
    (["--within-step", "all"], "--within-step all: must be one of block"),
    (["--guidance-schedule", "x"], "--guidance-schedule x: must be one of linear"),
])
def test_mistakes_in_sampling_end_in_one_line(arguments, says, finished, mistake, tmp_path):
    assert says in mistake(sample_mini, finished[0], *arguments)
    assert os.listdir(tmp_path) == []


def test_a_mistake_as_a_user_meets_it(pictures, tmp_path):
    """Broken if a new process prints a traceback, or writes something before it ends."""
    done = run("train_mini.py", "--data", pictures, "--side", 18, "--out", tmp_path / "x", code=2,
               alone=True)
    assert done.stderr == ("train_mini.py: error: --side 18: must be a multiple of the tokenizer's "
                           "stride, 4\n")
    assert not (tmp_path / "x").exists()


def test_other_peoples_folders_are_refused_and_unharmed(finished, mistake, tmp_path):
    out, _ = finished
    before = (out / "model.pt").read_bytes()
    assert f"--out {out}: already holds a run" in mistake(train_mini, "--out", out)
    assert "--steps 9: the run in" in mistake(train_mini, "--out", out, "--resume", "--steps", 9)
    assert "model.pt: no such file" in mistake(sample_mini, tmp_path)
    assert (out / "model.pt").read_bytes() == before


def test_a_truncated_model_is_named(finished, mistake, tmp_path):
    out, _ = finished
    (tmp_path / "model.pt").write_bytes((out / "model.pt").read_bytes()[:5000])
    assert "model.pt: not a readable checkpoint" in mistake(sample_mini, tmp_path)


def test_help_needs_no_torch():
    for script in ("train_mini.py", "sample_mini.py"):
        probe = ("import sys\nimport runpy, atexit\n"
                 "atexit.register(lambda: print('torch' in sys.modules))\n"
                 f"sys.argv = ['x', '--help']\nrunpy.run_path({script!r}, run_name='__main__')")
        done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True,
                              text=True)
        assert done.returncode == 0 and done.stdout.strip().endswith("False"), done.stderr


@pytest.mark.slow
def test_a_released_tokenizer_is_used_by_one_run_and_then_by_another(pictures, tmp_path):
    """The first run uses the released file, and the second run uses the first one's file. No preset
    has stride 2, and resuming must keep it."""
    torch.manual_seed(0)
    vq = VQTokenizer(TokenizerConfig(channels=32, multipliers=(1, 1), encoder_blocks=1,
                                     decoder_blocks=2, latent_channels=32, codebook_size=16,
                                     code_dim=4))
    torch.save({"model": released(vq)}, tmp_path / "vq.pt")
    more = ["--data", pictures, "--side", 6, "--steps", 2, "--batch-size", 4, "--device", "cpu"]
    run("train_mini.py", *more, "--tokenizer", tmp_path / "vq.pt", "--out", tmp_path / "first")
    run("train_mini.py", *more, "--tokenizer", tmp_path / "first" / "tokenizer.pt", "--out",
        tmp_path / "second")
    assert run("train_mini.py", "--resume", "--out", tmp_path / "second").stdout
    assert load_model(tmp_path / "second" / "model.pt")[0].config.grid == (3, 3)


def test_a_picture_of_any_size_and_mode_is_edited_and_put_back(finished, sample, tmp_path):
    """The pictures have odd sides and are RGB, palette, grey or transparent. Outside the mask every
    pixel of the result is the picture's. A strip and an animation are written too."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (30, 47, 3)).astype(np.uint8))
    light = np.zeros((30, 47), np.uint8)
    light[5:20, 10:31] = 255
    Image.fromarray(light).save(tmp_path / "mask.png")
    for name, picture in (("rgb", noise), ("palette", noise.convert("P")),
                          ("grey", noise.convert("L")), ("alpha", noise.convert("RGBA"))):
        picture.save(tmp_path / f"{name}.png")
        before = np.asarray(picture.convert("RGB"))
        sample(finished[0], "--inpaint", f"{name}.png", "--mask", "mask.png", "--feather", 2,
               "--steps", 2, "--gif", "x.gif")
        after = np.asarray(Image.open(tmp_path / "edited.png"))
        assert after.shape == before.shape and (after != before)[light > 0].mean() > 0.5
        assert (after == before)[light == 0].all()
        with Image.open(tmp_path / "x.gif") as gif, Image.open(
                tmp_path / "edited-strip.png") as strip:
            assert gif.n_frames > 1 and strip.width > 2 * 47


def test_what_is_hidden_in_a_file_shows_nowhere_in_the_result(finished, sample, tmp_path):
    """Two pictures that differ only under the mask give the same result. They are scaled down to
    fit, and the seam is wide. The mask is a box, a picture, or strokes on a transparent layer."""
    rng, results = np.random.default_rng(0), []
    picture = rng.integers(0, 256, (60, 81, 3)).astype(np.uint8)
    light = np.zeros((60, 81), np.uint8)
    light[7:50, 31:70] = 255
    Image.fromarray(light).save(tmp_path / "mask.png")
    Image.fromarray(np.dstack([light | 255] * 3 + [light])).save(tmp_path / "strokes.png")
    for other in (False, True):
        if other:
            picture[light > 0] = rng.integers(0, 256, (int((light > 0).sum()), 3))
        Image.fromarray(picture).save(tmp_path / "p.png")
        for where in (["--box", "31,7,70,50"], ["--mask", "mask.png"], ["--mask", "strokes.png"]):
            sample(finished[0], "--inpaint", "p.png", *where, "--feather", 9, "--steps", 3)
            results.append(np.asarray(Image.open(tmp_path / "edited.png")))
    assert all((result == results[0]).all() for result in results)
    assert (results[0][light == 0] == picture[light == 0]).all()


def test_edits_grids_and_candidates(finished, sample, mistake, tmp_path):
    out, rng = finished[0], np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 24, 3)).astype(np.uint8)).save(tmp_path / "p.png")
    sample(out, "--edit", "p.png", "--box", "0,0,12,12", "--classes", "dog", "--was", "cat",
           "--count", 2, "--out", "e.png")
    two = [np.asarray(Image.open(tmp_path / f"e-{i}.png")) for i in (1, 2)]
    assert (two[0] != two[1]).any() and (two[0][12:] == two[1][12:]).all()
    sample(out, "--outpaint", "p.png", "--grid", "9x9", "--at", "1,2", "--out", "o.png")
    placed = np.asarray(Image.open(tmp_path / "o.png"))
    top, left = round(4 * 40 / 28), round(8 * 24 / 16)          # fitted to 28×16: 7×4 tokens
    before = np.asarray(Image.open(tmp_path / "p.png"))
    assert (placed[top:top + 40, left:left + 24] == before).all()
    assert "--expand goes without" in mistake(sample_mini, out, "--expand", 2, "--grid", "4x8")
    for flags, shape in ((["--expand", 2], (3, 32, 32, 3)), (["--grid", "4x8"], (3, 16, 32, 3)),
                         (["--grid", "4x8", "--positions", "ntk"], (3, 16, 32, 3))):
        sample(out / "best.pt", *flags, "--count", 3, "--npz", "x.npz")
        with np.load(tmp_path / "x.npz") as file:
            assert file["arr_0"].shape == shape


@pytest.mark.parametrize("arguments, says", [
    (["--inpaint", "p.png"], "--mask, --box"), (["--box", "1,1,3,3"], "--mask, --box"),
    (["--inpaint", "none.png", "--box", "1,1,3,3"], "--inpaint none.png: no readable picture"),
    (["--inpaint", "text.png", "--box", "1,1,3,3"], "--inpaint text.png: no readable picture"),
    (["--inpaint", "p.png", "--mask", "small.png"], "--mask small.png: is 5x4, the picture 24x40"),
    (["--inpaint", "p.png", "--mask", "dark.png"], "--mask dark.png: has no light pixel"),
    (["--inpaint", "p.png", "--box", "1,1,30,3"], "--box 1,1,30,3: must be x0 < x1 <= 24"),
    (["--inpaint", "p.png", "--box", "5,5,5,9"], "--box 5,5,5,9"),
    (["--inpaint", "p.png", "--box", "1,1,3"], "--box 1,1,3: must be x0,y0,x1,y1"),
    (["--edit", "p.png", "--box", "1,1,3,3"], "--edit: needs --classes"),
    (["--inpaint", "p.png", "--box", "1,1,3,3", "--was", "1"], "--was: goes with --edit"),
    (["--edit", "p.png", "--box", "1,1,3,3", "--classes", "1", "--was", "cow"], "'cow'"),
    (["--outpaint", "p.png"], "--grid: --outpaint needs it"),
    (["--outpaint", "p.png", "--grid", "3x3"], "--grid 3x3: p.png is 7x4 tokens"),
    (["--outpaint", "p.png", "--grid", "9x9", "--at", "3,1"], "do not fit at 3,1"),
    (["--inpaint", "p.png", "--outpaint", "p.png"], "--inpaint: goes without"),
    (["--grid", "900x900"], "--grid: 900x900 tokens are more than 64 times"),
    (["--grid", "0x3"], "--grid 0x3: must be HxW"), (["--expand", "0"], "--expand 0: must be 1"),
    (["--positions", "x"], "--positions x: must be one of windows"),
    (["--at", "1,1"], "--at: goes with --outpaint"),
    (["--control", "p.png"], "--control p.png: needs a run trained with --control edges"),
    (["--inpaint", "p.png", "--box", "1,1,3,3", "--out", "p.png"], "none of them read from"),
    (["--inpaint", "e-2.png", "--box", "1,1,3,3", "--out", "e.png", "--count", "2"], "none of"),
    (["--inpaint", "p.png", "--box", "1,1,3,3", "--guidance", "5"], "--guidance 5.0: needs"),
    (["--grid", "1x200", "--count", "90", "--gif", "w.gif", "--columns", "999"],
     "--gif w.gif: would be 72180x"),
    (["--seed", str(2**63)], "--seed 9223372036854775808: must be 0 to"),
])
def test_mistakes_in_editing_end_in_one_line(arguments, says, finished, mistake, tmp_path):
    Image.new("RGB", (24, 40)).save(tmp_path / "p.png")
    Image.new("RGB", (24, 40)).save(tmp_path / "e-2.png")
    Image.new("L", (5, 4), 255).save(tmp_path / "small.png")
    Image.new("L", (24, 40)).save(tmp_path / "dark.png")
    (tmp_path / "text.png").write_text("no picture")
    before = set(os.listdir(tmp_path))
    assert says in mistake(sample_mini, finished[0], *arguments)
    assert set(os.listdir(tmp_path)) == before


def test_a_control_is_trained_onto_a_finished_run_and_followed(finished, mistake, sample,
                                                               tmp_path):
    """--init takes the averaged weights. The new adapter changes nothing at first, so the first
    validation loss is that of the finished run. Then the adapter is trained, resumed and used."""
    out, _ = finished
    Image.new("RGB", (30, 20)).save(tmp_path / "p.png")
    arguments = ["--data", out, "--tokenizer", out / "tokenizer.pt", "--init", out / "best.pt",
                 "--control", "edges", "--batch-size", 8]
    done = run("train_mini.py", *arguments, "--steps", 2, "--lr", 1e-9, "--out", tmp_path / "x",
               "--gpus", 2, "--device", "cpu")
    assert done.stdout.count("validation loss") == 1      # only the first process sums up
    losses = [float((folder / "log.csv").read_text().splitlines()[row].split(",")[3])
              for folder, row in ((out, -1), (tmp_path / "x", 1))]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert weights(tmp_path / "x")["config"]["control_stride"] == 4
    run("train_mini.py", "--resume", "--out", tmp_path / "x")
    sample(tmp_path / "x", "--control", "p.png", "--count", 3, "--expand", 2)
    assert (tmp_path / "samples.png").exists()
    said = mistake(train_mini, *arguments, "--steps", 1, "--init", out / "tokenizer.pt")
    assert "tokenizer.pt: is not a model of this program" in said
    assert "--control depth: must be edges" in mistake(train_mini, "--control", "depth")
