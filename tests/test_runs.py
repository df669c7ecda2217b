"""Runs that a lab can trust: several processes train like one, a run continues from any checkpoint
to the bit, and a failure never destroys what was saved before."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

import sample_mini
import train_mini
from arpg_mini import UserError, training
from arpg_mini.config import TrainConfig
from arpg_mini.data.files import also_as
from arpg_mini.run import checkpoint, drawing, processes
from tests.helpers import ROOT, TINY, Copy, FakeIds, run, tiny_model, weights


def train(out, *arguments, **how):
    return run("train_mini.py", "--out", out, "--device", "cpu", *arguments, **how)


def curve(out, column="train_loss") -> np.ndarray:
    return np.genfromtxt(out / "log.csv", delimiter=",", names=True)[column]


def same_weights(a, b, exactly=True) -> bool:
    """Are they equal to the bit, or to a thousandth? AdamW moves a weight by the sign of its first
    gradients, even tiny ones, so the order of summation changes weights more than losses."""
    pairs = [(a[k][name], b[k][name]) for k in ("model", "ema") for name in a[k]]
    if exactly:
        return all(torch.equal(x, y) for x, y in pairs)
    return all((x - y).norm() < 1e-3 * x.norm() for x, y in pairs)


@pytest.mark.parametrize("how", [
    pytest.param(["--gpus", 2, "--micro-batch", 3], marks=pytest.mark.slow),
    ["--micro-batch", 2], ["--recompute"],
    ["--gpus", 2, "--micro-batch", 1, "--shard", "--recompute"]],
    ids=lambda how: " ".join(map(str, how)))
def test_however_it_is_fitted_onto_the_machine_it_trains_the_same(how, finished, pictures,
                                                                  tmp_path):
    """Two processes, sharded or not, with accumulation or recomputation, have the loss curve of one
    process. Weights and their average are equal too, except for the order of summation. (One of
    the runs is a new program, whose processes start as a user's do.)"""
    out, _ = finished
    done = train(tmp_path / "x", "--data", pictures, "--side", 16, *TINY, *how, "--tokenizer",
                 out / "tokenizer.pt", alone="3" in map(str, how))
    assert done.stdout.count("validation loss") == 1      # only the first process sums up
    for column in ("train_loss", "val_loss", "gradient_norm"):
        assert np.abs(curve(out, column) - curve(tmp_path / "x", column)).max() < 1e-4
    assert same_weights(weights(out), weights(tmp_path / "x"), exactly=False)


@pytest.mark.slow
def test_a_longer_curve_of_two_processes_is_that_of_one(pictures, finished, tmp_path):
    """Sixty steps at the tiny run's learning rates. DDP and sharding are compared with one process.
    """
    arguments = ["--data", pictures, "--side", 16, "--steps", 60, "--batch-size", 16,
                 "--tokenizer", finished[0] / "tokenizer.pt"]
    for name, how in (("one", []), ("ddp", ["--gpus", 2]), ("shard", ["--gpus", 2, "--shard"])):
        train(tmp_path / name, *arguments, *how)
    for name in ("ddp", "shard"):
        assert np.abs(curve(tmp_path / "one") - curve(tmp_path / name)).max() < 1e-4


@pytest.mark.slow
def test_compiled_blocks_train_the_same(finished, pictures, tmp_path):
    """Broken if compiled blocks fail with one of the options that can be combined with them."""
    out, _ = finished
    train(tmp_path / "x", "--data", pictures, "--side", 16, *TINY, "--compile", "--gpus", 2,
          "--shard", "--recompute", "--tokenizer", out / "tokenizer.pt", alone=True)
    assert np.abs(curve(out) - curve(tmp_path / "x")).max() < 1e-4


@pytest.mark.slow
def test_bfloat16_products_train_nearly_the_same(finished, pictures, tmp_path):
    """One process uses autocast, two use FSDP's own policy. The loss is equal within 1 %, but not
    to the bit: otherwise nothing was computed in bfloat16."""
    out, _ = finished
    for name, how in (("one", []), ("two", ["--gpus", 2, "--shard"])):
        train(tmp_path / name, "--data", pictures, "--side", 16, *TINY, *how, "--precision",
              "bfloat16", "--tokenizer", out / "tokenizer.pt")
        off = np.abs(curve(out) - curve(tmp_path / name))
        assert 1e-6 < off.max() < 0.05
        assert all(w.dtype == torch.float32 for w in weights(tmp_path / name)["model"].values())


@pytest.fixture
def half_way(finished, tmp_path):
    """The finished run as it was after step 5 of 6, without newer checkpoints."""
    out = tmp_path / "half"
    shutil.copytree(finished[0], out)
    for name in ("model.pt", "best.pt"):
        (out / name).unlink()
    assert weights(out, "model-00000005.pt")["step"] == 5
    return out


@pytest.mark.parametrize("how", [[], ["--gpus", 2, "--shard"]],
                         ids=lambda how: " ".join(map(str, how)) or "one")
def test_a_checkpoint_of_one_process_goes_on_in_several(how, half_way, finished):
    """Broken if optimizer or average get lost: the next step's weights are the first run's."""
    train(half_way, "--resume", *how)
    a, b = weights(finished[0]), weights(half_way)
    assert a["step"] == b["step"] == 6 and same_weights(a, b, exactly=not how)


@pytest.mark.slow
def test_three_processes_go_on_to_the_bit(finished, tmp_path):
    """Broken if a wrapper sums the gradients of its first step in another order than later ones.
    With two processes this would not show: the sum of two does not depend on their order."""
    out = tmp_path / "x"
    train(out, "--data", finished[0], "--tokenizer", finished[0] / "tokenizer.pt", "--batch-size",
          9, "--steps", 6, "--save-every", 3, "--gpus", 3)
    whole = weights(out)
    for name in ("model.pt", "best.pt"):
        (out / name).unlink()
    assert weights(out, "model-00000003.pt")["step"] == 3
    train(out, "--resume", "--gpus", 3)
    assert same_weights(whole, weights(out))


@pytest.mark.slow
def test_a_sharded_checkpoint_goes_on_in_one_process(finished, pictures, tmp_path):
    """Also, a finished run that is started again only draws its sheet of samples."""
    arguments = ["--data", pictures, "--side", 16, *TINY, "--tokenizer",
                 finished[0] / "tokenizer.pt"]
    train(tmp_path / "x", *arguments, "--gpus", 2, "--shard")
    whole = weights(tmp_path / "x")
    (tmp_path / "x" / "samples.png").unlink()
    done = train(tmp_path / "x", "--resume", "--gpus", 2, "--shard")
    assert "validation loss" in done.stdout and (tmp_path / "x" / "samples.png").exists()
    for name in ("model.pt", "best.pt"):
        (tmp_path / "x" / name).unlink()
    train(tmp_path / "x", "--resume", "--shard")        # one process: same as without
    assert same_weights(whole, weights(tmp_path / "x"), exactly=False)


@pytest.mark.parametrize("damage", [lambda raw: raw[:5000], lambda raw: b"",
                                    lambda raw: raw[:50_000] + b"\0" * 500 + raw[50_500:]])
def test_resuming_takes_the_newest_that_can_be_read_and_says_what_it_skipped(damage, half_way,
                                                                            finished):
    (half_way / "model.pt").write_bytes(damage((finished[0] / "model.pt").read_bytes()))
    done = train(half_way, "--resume")
    assert re.search(r"skipped: \S*/half/model.pt: not a readable checkpoint", done.stderr)
    assert same_weights(weights(finished[0]), weights(half_way))
    assert (half_way / "model.damaged").exists()     # not under a checkpoint's name
    assert weights(half_way, "model-00000005.pt")["step"] == 5


def test_no_readable_checkpoint_is_an_error_and_no_new_start(half_way, mistake):
    (half_way / "model-00000005.pt").write_bytes(b"torn")
    said = mistake(train_mini, "--out", half_way, "--resume")
    assert "no other checkpoint" in said
    assert (half_way / "model-00000005.pt").read_bytes() == b"torn"


def test_the_newest_and_the_best_are_kept(tmp_path):
    """With validation losses 3, 1, 2, 4 the second is the best, and pruning does not delete it."""
    former, best = None, float("inf")
    for step, loss in enumerate((3.0, 1.0, 2.0, 4.0), 1):
        checkpoint.save_run(tmp_path, 2, loss < best, former, step=step, best=min(best, loss))
        former, best = step, min(best, loss)
    steps = {p.name: checkpoint.load(p, "model")["step"] for p in tmp_path.iterdir()}
    assert steps == {"model.pt": 4, "model-00000003.pt": 3, "best.pt": 2}
    checkpoint.save_run(tmp_path, 1, False, 4, step=5, best=1.0)
    assert {p.name for p in tmp_path.iterdir()} == {"model.pt", "best.pt"}


def test_linking_twice_leaves_no_other_file(tmp_path):
    """This happens if a save fails after the former checkpoint has got its second name. The next
    save links it again."""
    checkpoint.save(tmp_path / "model.pt", "model", step=1)
    for _ in range(2):
        also_as(tmp_path / "model.pt", tmp_path / "model-00000001.pt")
    assert {p.name for p in tmp_path.iterdir()} == {"model.pt", "model-00000001.pt"}


def test_without_hard_links_files_are_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("not here")))
    test_the_newest_and_the_best_are_kept(tmp_path)


def test_a_run_says_which_steps_it_left_out_and_gives_up_when_all_are(finished, tmp_path):
    """A learning rate that makes training diverge ends in one line. The checkpoint stays as it was.
    """
    data = ["--data", finished[0], "--tokenizer", finished[0] / "tokenizer.pt", "--batch-size", 8,
            "--steps", 100, "--save-every", 1]
    done = train(tmp_path / "x", *data, "--lr", 1e30, code=2)
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1 and "no gradient of the last" in errors[0], done.stderr
    assert "steps were skipped, because their gradients were not finite" in done.stderr
    assert all(w.isfinite().all() for w in weights(tmp_path / "x")["model"].values())


def test_ids_of_another_run_are_taken_as_they_are(finished, mistake, tmp_path):
    """--data RUN uses the run's ids, but only with the tokenizer that made them. A damaged file is
    named."""
    out, _ = finished
    tokenizer = ["--tokenizer", out / "tokenizer.pt"]
    train(tmp_path / "x", "--data", out, *tokenizer, "--steps", 2, "--batch-size", 8)
    assert ((tmp_path / "x" / "ids" / "train.npy").read_bytes()
            == (out / "ids" / "train.npy").read_bytes())
    assert json.loads((tmp_path / "x" / "config.json").read_text())["classes"] == ["cat", "dog"]
    other = checkpoint.load_tokenizer(out / "tokenizer.pt")[0]
    with torch.no_grad():
        other.codebook.rows[0] += 0.1
    checkpoint.save_tokenizer(tmp_path / "other.pt", other)
    assert "other.pt: must be the one that encoded the ids" in mistake(
        train_mini, "--data", out, "--tokenizer", tmp_path / "other.pt")
    shutil.copytree(out / "ids", tmp_path / "ids")
    with open(tmp_path / "ids" / "train.npy", "r+b") as file:
        file.seek(300), file.write(b"\xff")
    assert "train.npy: has changed since it was written" in mistake(
        train_mini, "--data", tmp_path / "ids", *tokenizer)
    assert not (tmp_path / "runs").exists()


def test_one_process_at_a_time_is_at_work_in_a_folder(half_way, mistake):
    """A job is submitted again while the first one is still saving."""
    import fcntl
    before = (half_way / "model-00000005.pt").read_bytes()
    with open(half_way / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = mistake(train_mini, "--out", half_way, "--resume")
    assert f"--out {half_way}: another process is using it" in said
    assert (half_way / "model-00000005.pt").read_bytes() == before


@pytest.mark.slow
def test_a_job_that_is_sent_again_needs_no_other_command(finished, mistake, tmp_path):
    """--resume with data begins a new run if there is none, and continues a run if there is one.
    Without data it needs a run."""
    data = ["--data", finished[0], "--tokenizer", finished[0] / "tokenizer.pt", "--batch-size", 8,
            "--steps", 2, "--resume"]
    train(tmp_path / "x", *data)
    first = weights(tmp_path / "x")
    train(tmp_path / "x", *data)
    assert same_weights(first, weights(tmp_path / "x"))
    assert "no run to resume" in mistake(train_mini, "--resume", "--out", tmp_path / "y")


def test_damaged_ids_of_a_run_are_made_anew(finished, half_way):
    before = (half_way / "ids" / "train.npy").read_bytes()
    (half_way / "ids" / "train.npy").write_bytes(before[:-2])
    done = train(half_way, "--resume")
    assert re.search("train.npy: has changed since it was written.*encoding the pictures again",
                     done.stderr)
    assert (half_way / "ids" / "train.npy").read_bytes() == before
    assert same_weights(weights(finished[0]), weights(half_way))


def test_with_its_ids_a_run_goes_on_without_the_pictures(half_way, finished):
    """The pictures are encoded once: a lab may then move them away."""
    path = half_way / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": "/no/such/folder"}))
    train(half_way, "--resume")
    assert same_weights(weights(finished[0]), weights(half_way))


def test_extracted_ids_are_trained_on(finished, tmp_path):
    """They are in a folder of CLASS_INDEX/NAME.npy. One of its files is damaged."""
    tokens = np.random.default_rng(0).integers(0, 256, (40, 1, 2, 16))
    for i, ids in enumerate(tokens):
        (tmp_path / "x" / str(i % 4)).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "x" / str(i % 4) / f"{i}.npy", ids)
    (tmp_path / "x" / "3" / "39.npy").write_bytes(b"torn")
    done = train(tmp_path / "run", "--data", tmp_path / "x", "--steps", 2, "--batch-size", 8,
                 "--tokenizer", finished[0] / "tokenizer.pt", "--gpus", 2)
    assert f"left out: {tmp_path / 'x' / '3' / '39.npy'}: " in done.stderr
    made = np.load(tmp_path / "run" / "ids" / "train.npy")
    assert made.shape[1:] == (2, 16) and weights(tmp_path / "run")["config"]["num_classes"] == 4


def test_ten_views_are_encoded(finished, pictures, tmp_path):
    train(tmp_path / "run", "--data", pictures, "--side", 16, "--steps", 1, "--batch-size", 8,
          "--tokenizer", finished[0] / "tokenizer.pt", "--views", "ten-crop")
    assert np.load(tmp_path / "run" / "ids" / "train.npy").shape[1:] == (10, 16)
    assert np.load(tmp_path / "run" / "ids" / "val.npy").shape[1:] == (1, 16)


def bad_folders(root) -> dict[str, str]:
    """Unusable folders of data, and a part of the message for each."""
    def folder(name, **files):
        for file, content in files.items():
            path = root / name / file.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return name

    picture = io_png()
    (root / "empty").mkdir()
    (root / "file").write_bytes(picture)
    square = np.zeros((1, 2, 16), np.int64)
    for i in range(4):
        (root / "tall" / "0").mkdir(parents=True, exist_ok=True)
        (root / "large" / "0").mkdir(parents=True, exist_ok=True)
        np.save(root / "tall" / "0" / f"{i}.npy", np.zeros((1, 2, 15), np.int64))
        np.save(root / "large" / "0" / f"{i}.npy", square + 256)
    for i in range(3):
        (root / "nolabel" / "codes").mkdir(parents=True, exist_ok=True)
        np.save(root / "nolabel" / "codes" / f"{i}.npy", square)
    (root / "nolabel" / "labels").mkdir()
    return {
        "missing": "no such folder", "empty": "has 0 pictures", "file": "no such folder",
        folder("flat", **{"a.png": picture, "b.png": picture}): "has 0 pictures",
        folder("one", **{"cat__a.png": picture}): "has 1 pictures",
        folder("text", **{"cat__a.txt": b"x", "dog__b.txt": b"x"}): "has 0 pictures",
        folder("torn", **{f"cat__{i}.png": b"\x89PNG" for i in range(9)}): "no readable picture",
        folder("split", **{"train__a__1.png": picture, "train__a__2.png": picture,
                           "val__b__1.png": picture}): "val has no pictures in folders named",
        "tall": "a picture has 15 ids, which is not a square", "large": "no ids of this tokenizer",
        "nolabel": "no file of one class number",
        folder("ids", **{"train.json": b"{}", "train.npy": b""}): "does not describe",
    }


def io_png() -> bytes:
    import io
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PNG")
    return file.getvalue()


def test_bad_folders_end_in_one_line_and_leave_no_run(finished, tmp_path):
    """This calls `begin`, where a run opens its data, in this process: that is faster."""
    from arpg_mini.run.describe import describe_run
    from arpg_mini.run.prepare import begin
    for name, says in bad_folders(tmp_path).items():
        options = train_mini.parse(["--data", str(tmp_path / name), "--side", "16", "--out",
                         str(tmp_path / "out"), "--tokenizer",
                         str(finished[0] / "tokenizer.pt")])
        with pytest.raises(UserError) as mistake:
            begin(describe_run(options), options, None, torch.device("cpu"))
        assert says in str(mistake.value) and name in str(mistake.value)
        assert "\n" not in str(mistake.value) and not (tmp_path / "out").exists()


def test_a_mistake_in_several_processes_is_reported_once(tmp_path):
    done = train(tmp_path / "x", "--data", tmp_path / "none", "--gpus", 2, code=2)
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr, done.stderr


def limited():
    """Limit this process's files to 3 MB. This acts like a full disk, for any user, anywhere."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(finished, tmp_path):
    """The model takes more than 3 MB, so no save succeeds under the limit. The run reports this and
    keeps training. The last save must succeed, so the run ends with an error. Later, with enough
    space, the run continues from the checkpoint that was there."""
    data = ["--data", finished[0], "--tokenizer", finished[0] / "tokenizer.pt", "--batch-size", 8,
            "--save-every", 2]
    out = tmp_path / "x"
    train(out, *data, "--steps", 6)
    whole = weights(out)
    for name in ("model.pt", "best.pt"):
        (out / name).unlink()                   # as if killed after step 4
    before = (out / "model-00000004.pt").read_bytes()
    again = tmp_path / "again"
    shutil.copytree(out, again)
    done = train(again, "--resume", "--save-every", 1, preexec_fn=limited, code=2)
    errors = [line for line in done.stderr.splitlines() if "can't be written" in line]
    assert "training continues, the newest checkpoint is of step 4" in errors[0], done.stderr
    assert re.search(r"error: \S*model.pt: can't be written \(File too large\)", errors[-1])
    assert "Traceback" not in done.stderr and not list(again.glob("*.part"))
    assert weights(again)["step"] == 4
    assert (again / "model-00000004.pt").read_bytes() == before
    train(again, "--resume")
    assert same_weights(whole, weights(again))


def test_missing_tensorboard_is_reported_first(mistake, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "--tensorboard: needs that package" in mistake(train_mini, "--tensorboard")
    assert not list(tmp_path.iterdir())


def start(out, *arguments):
    return Copy([str(ROOT / "train_mini.py"), "--device", "cpu", "--out", str(out),
                 *map(str, arguments)])


def wait_for_rows(process, log, rows=2):
    while not log.exists() or len(log.read_text().splitlines()) < rows:
        assert process.poll() is None, process.end().stderr
        time.sleep(0.05)


@pytest.mark.parametrize("number", [
    signal.SIGINT, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_ctrl_c_in_a_terminal_and_a_schedulers_warning_save_and_end(number, finished, tmp_path):
    """Ctrl-C reaches every process, and the first one passes it on too: two signals count as one.
    A scheduler sends USR1 before its time limit."""
    process = start(tmp_path / "x", "--data", finished[0], "--tokenizer",
                    finished[0] / "tokenizer.pt", "--batch-size", 8, "--steps", 20_000, "--gpus", 2,
                    "--save-every", 20_000)
    wait_for_rows(process, tmp_path / "x" / "log.csv")
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    done = process.end(timeout=60)
    said = done.stderr
    assert done.returncode == 128 + number, said
    assert "Traceback" not in said and said.count("stopped by a signal after step") == 1
    step = weights(tmp_path / "x")["step"]
    assert 0 < step < 20_000 and f"after step {step}," in said


@pytest.mark.slow
def test_torchrun_can_start_the_processes(finished, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
         str(ROOT / "train_mini.py"), "--device", "cpu", "--out", str(tmp_path / "x"), "--data",
         str(finished[0]), "--tokenizer", str(finished[0] / "tokenizer.pt"), "--shard", *TINY],
        capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert np.abs(curve(finished[0]) - curve(tmp_path / "x")).max() < 1e-4


def test_the_step_after_loading_is_the_step_before_saving(tmp_path):
    """One process saves and loads its state: model, average and every number of the optimizer."""
    config = TrainConfig(steps=8, batch_size=4, lr=1e-2)

    def go(model, start, stop, saved=None):
        average = training.average_of(model)
        optimizer = training.make_optimizer(model, 0.05, config.betas)
        if saved:
            processes.load_state(saved, model, average, optimizer)
        steps = training.train_arpg(model, model, average, FakeIds(), config, 3, optimizer, start)
        for _ in range(start, stop):
            next(steps)
        return processes.whole_state(model, average, optimizer)

    end = go(tiny_model(dropout=0.2), 0, 8)
    checkpoint.save(tmp_path / "m.pt", "model", **go(tiny_model(dropout=0.2), 0, 5))
    again = go(tiny_model(seed=9, dropout=0.2), 5, 8, checkpoint.load(tmp_path / "m.pt", "model"))
    assert same_weights(end, again)
    for name, state in end["optimizer"]["state"].items():
        assert all(torch.equal(v, again["optimizer"]["state"][name][k]) for k, v in state.items())
    assert asdict(config) == asdict(TrainConfig(steps=8, batch_size=4, lr=1e-2))


class Full:
    """A model whose GPU has too little memory."""

    def steps(*_, **how):
        yield from ()
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 9")


@pytest.mark.parametrize("card, says", [
    (24e9, "by --plan its 24 GB hold 1024 at a time"),
    (1e9, "by --plan its 1 GB hold none; try --recompute, --shard or a smaller model")])
def test_too_little_memory_names_the_flag_and_what_fits(card, says, pictures, tmp_path, mistake):
    with (patch.object(training, "train_arpg", Full.steps),
          patch("torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=card))):
        said = mistake(train_mini, "--data", pictures, "--side", 16, *TINY, "--micro-batch", 4,
                       "--out", tmp_path / "run", "--device", "cpu")
    assert said == ("train_mini.py: error: --micro-batch 4: more than the GPU's memory holds (CUDA "
                    f"out of memory); {says}")


def test_too_little_memory_to_draw_names_the_batch(finished, mistake):
    with patch.object(drawing, "complete_steps", Full.steps):
        said = mistake(sample_mini, finished[0], "--count", 9, "--batch-size", 5)
    assert said.endswith("--batch-size 5: more than the GPU's memory holds (CUDA out of memory); "
                         "try half of it")


def test_a_gpu_is_set_up_before_the_work(monkeypatch):
    """Broken if it still plans attention by cuDNN, or multiplies float32 without tensor cores."""
    for kind, calls in (("cpu", []), ("cuda", [("sdp", False), ("products", "high")])):
        seen = []
        monkeypatch.setattr("torch.backends.cuda.enable_cudnn_sdp",
                            lambda x: seen.append(("sdp", x)))
        monkeypatch.setattr("torch.set_float32_matmul_precision",
                            lambda x: seen.append(("products", x)))
        monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
        processes.launch(lambda device: seen.append(device.type), 1, kind)
        assert seen == [*calls, kind], f"{kind}: {seen}"
