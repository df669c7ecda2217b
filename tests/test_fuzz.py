"""Damaged files and senseless flags end in one line: no traceback, no hang, no unbounded memory.

`python -m tests.test_fuzz FIRST LAST` repeats the damaged files of these numbers.
"""

import contextlib
import faulthandler
import gzip
import hashlib
import io
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
import zipfile
from argparse import Namespace
from collections import Counter
from dataclasses import asdict
from functools import cache
from pathlib import Path
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from PIL import Image

import sample_mini
import train_mini
from arpg_mini import ModelConfig, TokenizerConfig, UserError, VQTokenizer, pretrained, training
from arpg_mini.config import TrainConfig
from arpg_mini.data import builtin, folders, ids, images
from arpg_mini.measure import (
    bench,
    bench_decode,
    count,
    edit_scores,
    evaluation,
    judge,
    parallel,
    timing,
)
from arpg_mini.run import (
    checkpoint,
    describe,
    drawing,
    export,
    prepare,
    processes,
    request,
    retouch,
    saving,
)
from arpg_mini.run.presets import presets
from tests.helpers import ROOT, code_of, tiny_model

CPU, SECONDS, MORE_BYTES, MOST_BYTES = torch.device("cpu"), 60, 300e6, 8 * 2**30
LARGE_BYTES = 1.5e9                 # a picture, up to Pillow's 179 million pixels; TorchScript
IDX = bytes([0, 0, 8, 3]) + np.array([3, 4, 5], ">i4").tobytes() + bytes(range(60))
MADE_OF = {"pictures": "p", "views": "center", "tokenizer": "t"}


def small():
    return tiny_model(torch.float32, vocab_size=256, num_classes=10, grid=(4, 4), query_layers=2)


def optimizer(model):
    return training.make_optimizer(model, 0.0, (0.9, 0.95))


class Network(torch.nn.Module):
    """It is called like the Inception network."""

    def forward(self, x, return_features: bool = False, no_output_bias: bool = False):
        return x.float().mean((2, 3))


def npy(shape, dtype="<i8", content=b"") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


def make(root: Path) -> None:
    """Write a small valid file of every kind into folders below `root`."""
    rng, model, run, other = np.random.default_rng(0), small(), root / "run", root / "other"
    for folder in ("pictures", "run/ids", "classes/train/1", "classes/val/1", "codes/codes",
                   "codes/labels", "npz", "released", "other"):
        (root / folder).mkdir(parents=True)
    picture = Image.fromarray(rng.integers(0, 256, (18, 20, 3)).astype(np.uint8))
    for suffix in ("png", "jpg", "webp", "gif", "tif", "bmp", "ppm"):
        picture.save(root / "pictures" / f"x.{suffix}")
    about = describe.describe_run(describe.parse(["--out", str(run)]))
    about["classes"] = list(builtin.SHAPES)
    (run / "config.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    log, state = saving.Log(run / "log.csv", 0), processes.whole_state(
        model, model, optimizer(model))
    for step in (1, 2):
        log.row(**dict.fromkeys(saving.Log.columns, 0.5) | {"step": step, "val_loss": ""})
        checkpoint.save_run(run, 2, step == 1, step - 1 or None, step=step, best=3.5,
                            config=asdict(model.config), classes=about["classes"], guidance=2.0,
                            guidance_schedule="linear", **state)
    mine, theirs = (VQTokenizer(TokenizerConfig(32, (1, 2), 1, n, 32, 256)) for n in (1, 2))
    checkpoint.save_tokenizer(run / "tokenizer.pt", mine, step=4, steps=4)
    for name, module in (("arpg.pt", model), ("vq.pt", theirs)):
        torch.save({"model": export.released(module)}, root / "released" / name)
    source = builtin.shapes_pictures(12, 0)
    for part in prepare.PARTS:
        for _ in ids.encode_parts(source, source.load, lambda shown: shown[:, None, ::6, ::6, 0]
                                  .reshape(-1, 1, 16), run / "ids" / part, MADE_OF):
            shutil.copy(ids.part_file(run / "ids" / part, 0), other / "part.npz")
        ids.put_together(source, run / "ids" / part, MADE_OF)
        for i in range(3):
            np.save(root / "classes" / part / "1" / f"{i}.npy", rng.integers(0, 9, (2, 4)))
            np.save(root / "codes" / "codes" / f"{i}.npy", rng.integers(0, 9, (1, 2, 4)))
            np.save(root / "codes" / "labels" / f"{i}.npy", np.array([i // 2]))
    for name in ("real.npz", "fake.npz"):
        images.save_npz(root / "npz" / name, [source.images[:5]], (5, 24, 24, 3),
                        source.labels[:5])
    mark = 2 * hashlib.sha256((root / "npz" / "real.npz").read_bytes()).hexdigest()
    checkpoint.save(root / "npz" / "real.npz.features", "features", mark=mark,
                    features=torch.ones(5, 3))
    with warnings.catch_warnings(action="ignore"):          # TorchScript is deprecated
        torch.jit.script(Network()).save(str(other / "network.pt"))
    checkpoint.save(other / "judge.pt", "judge of shapes", judge=judge.Classifier(10).state_dict())
    (other / "idx.gz").write_bytes(gzip.compress(IDX))


def alike(found, valid) -> bool:
    """Whether plain values have the types of valid ones. None may stand for a string."""
    if isinstance(valid, dict):
        return isinstance(found, dict) and found.keys() >= valid.keys() and all(
            alike(found[key], valid[key]) for key in valid)
    if isinstance(valid, (list, tuple)):
        return isinstance(found, (list, tuple)) and all(alike(one, valid[0]) for one in found)
    if isinstance(valid, float):
        return type(found) in (int, float) and math.isfinite(found)
    return found is None or isinstance(found, str) if valid is None else type(found) is type(valid)


# Readers get a folder and the damaged file in it. They return why the file was left out, or whether
# what they read has the documented type and shape.

def load(source, file: Path, shape: tuple, kind: type):
    kept, items = source.load(range(len(source)))
    return source.bad.get(str(file)) or (len(kept) == len(items) == len(source) and not source.bad
                                         and items.shape[1:] == shape and items.dtype == kind)


def load_ids(root: Path, file: Path):
    parts = ids.id_files(root, 9) or []
    return all([load(source, file, (2, 4), np.uint16) is True for source in parts]) or next(
        source.bad[str(file)] for source in parts if source.bad.keys() == {str(file)})


def read_part(root: Path, file: Path):
    part = ids.read_part(file, ids.mark_of(MADE_OF))
    return part["kept"].shape == (12,) and part["ids"].shape == (12, 1, 16) if part else "not it"


def read_npz(root: Path, file: Path):
    shown = np.concatenate(list(images.pictures(file, batch=2)))
    with images.open_pictures(file) as (_, shape):
        return shown.shape == shape and len(images.array(file, "arr_1", (5,), "iu")) == 5


def compare(root: Path, file: Path):
    network = "FID", "network", lambda x: x.float().mean((2, 3)), None
    with patch.object(evaluation, "choose_network", return_value=network):
        return evaluation.compare(Namespace(what=root / "real.npz", fake=root / "fake.npz",
                                            few=True, inception=root / "real.npz"), CPU) is None


def read_features(root: Path, file: Path):
    found = evaluation.cached(root / "real.npz", root / "real.npz", (5, 3),
                              lambda: torch.ones(5, 3))
    return found.shape == (5, 3) and found.dtype == torch.float32 and bool(found.isfinite().all())


@patch.object(judge, "shapes_classifier", lambda: judge.Classifier(10))     # in place of training
def read_judge(root: Path, file: Path):
    return isinstance(judge.load_judge("shapes", file), judge.Classifier)


def read_config(root: Path, file: Path):
    run = describe.describe_run(describe.parse(["--resume", "--out", str(root)]))
    for part, kind in (("model", ModelConfig), ("tokenizer", TokenizerConfig),
                       ("train", TrainConfig)):
        run[part] = asdict(kind(**run[part]))
    return alike(run, {"seed": 0, "init": None, "control": None, "tokenizer_file": None,
                       **asdict(presets()["shapes"])}) and alike(run.get("classes", []), [""])


def read_resumed(root: Path, file: Path):
    model = small()
    saver = saving.Saver({"init": None}, root, 2, False, model, small(), optimizer(model), None,
                         None)
    return type(saver.load()) is int and alike(saver.best, 1.0)


def read_drawer(root: Path, file: Path):
    options = request.parse([str(root)])
    request.check(options)
    drawer = drawing.load(options, CPU)
    return alike(drawer.names, [""]) and len(drawer.names) == drawer.model.config.num_classes


SAID = {"made_of": MADE_OF, "classes": [""], "pictures": 1, "left_out": {},
        "sha256": {".npy": "", ".labels.npy": ""}}
READERS = [                                     # folder, files to damage, reader
    ("pictures", "*", "FolderPictures", lambda root, file: load(folders.FolderPictures(
        [folders.Listed(file.name, 0, 1, 1)], root, ["a"], 16), file, (16, 16, 3), np.uint8)),
    ("pictures", "*", "open_picture", lambda root, file:
        drawing.open_picture("--edit", file).mode == "RGB"),
    ("pictures", "*", "read_mask", lambda root, file:
        retouch.read_mask(Namespace(mask=file), (20, 18)).shape == (18, 20)),
    ("released", "*", "read", lambda root, file: len(pretrained.read(file)) > 0),
    ("released", "arpg.pt", "load_released_arpg", lambda root, file:
        pretrained.load_released_arpg(file, 12, (4, 4)).config.head_dim == 12),
    ("released", "vq.pt", "load_released_tokenizer", lambda root, file:
        pretrained.load_released_tokenizer(file).config.stride > 0),
    ("released", "vq.pt", "load_any_tokenizer", lambda root, file:
        checkpoint.load_any_tokenizer(file)[0].config.stride > 0),
    ("run", "model.pt", "checkpoint.load", lambda root, file: isinstance(
        checkpoint.load(file, "model"), dict)),
    ("run", "model.pt", "load_model", lambda root, file:
        checkpoint.load_model(file)[0].config.dim > 0),
    ("run", "model.pt", "starting_weights", lambda root, file:
        saving.starting_weights(file, small().config).keys() == {"model", "ema"}),
    ("run", "tokenizer.pt", "load_tokenizer", lambda root, file:
        checkpoint.load_tokenizer(file)[0].config.stride > 0),
    ("run", "tokenizer.pt", "named_tokenizer", lambda root, file: prepare.named_tokenizer(
        {"tokenizer_file": str(file)}, root / "none").config.stride > 0),
    ("run", "model*.pt", "newest", lambda root, file: isinstance(
        checkpoint.newest(root)[0], dict)),
    ("run", "[bm]*.pt", "Saver.load", read_resumed),
    ("run", "*.pt", "drawing.load", read_drawer),
    ("run", "config.json", "describe_run", read_config),
    ("run", "log.csv", "Log", lambda root, file: all(
        int(row["step"]) <= 2 for row in saving.Log(file, 2).rows)),
    ("run", "ids/val.*", "verified", lambda root, file: alike(
        ids.verified(root / "ids" / "val"), SAID)),
    ("run", "ids/val*.npy", "orders_table", lambda root, file:
        evaluation.orders_table(root, 2, CPU) is None),
    ("classes", "*/1/*", "IdFiles of classes", load_ids),
    ("codes", "*/*", "IdFiles of codes", load_ids),
    ("npz", "fake.npz", "pictures, array", read_npz), ("npz", "*", "compare", compare),
    ("npz", "*.features", "cached", read_features),
    ("other", "part.npz", "read_part", read_part),
    ("other", "judge.pt", "load_judge", read_judge),
    ("other", "network.pt", "choose_network", lambda root, file: evaluation.choose_network(
        Namespace(inception=file), CPU)[0] == "FID"),
    ("other", "idx.gz", "read_idx", lambda root, file: builtin.read_idx(
        file, hashlib.sha256(IDX).hexdigest()).shape == (3, 4, 5))]

VALUES = [None, True, -1, 0, 7, 10**30, 1.5, -2.5, math.nan, math.inf, "", "x", "é" * 300, [], {},
          [[]], {"x": 1}, [1, "x"], [0] * 1000]
TENSORS = [torch.zeros(0), torch.zeros(3), torch.ones(3, 3, dtype=torch.int64), torch.tensor(1j),
           torch.zeros(1).expand(2**40), torch.zeros(1, 1).expand(2**30, 24),
           torch.eye(3).to_sparse(), torch.full((256, 24), math.nan),
           torch.zeros(2, 2, device="meta")]
ARRAYS = [npy((10**12,)), npy((-1, 3)), npy((2**62, 2**62), "<u2"), npy((), content=bytes(8)),
          npy((0, 4)), npy((2, 4), "|O", b"\x80\x04N."), npy((2, 4), "<f8", bytes(64)),
          npy((2, 4), content=b"\xff" * 64), npy((2, 4), content=bytes(64)),
          npy((5,), "<U3", bytes(60)), npy((5,), [("a", "<i4")], bytes(20))]
FOREIGN = [b"", b"text\n", b"\0" * 300, IDX, gzip.compress(IDX), npy((3,)), b"[1]", b'{"a": 1}',
           b"\x89PNG\r\n\x1a\n", b"PK\x05\x06" + bytes(18), b"\x80\x02]q\0."]
DAMAGE = ["cut", "flip", "inside", "swap", "insert", "inside", "huge", "flip", "bomb", "foreign",
          "pipe", "folder", "link"]


def one(rng, things):
    return things[rng.integers(len(things))]


def changed(value, rng, values):
    """One value is replaced or removed somewhere in nested dictionaries and lists."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.05:
        return one(rng, values)
    value = value.copy()
    at = one(rng, list(value) if isinstance(value, dict) else range(len(value)))
    if rng.random() < 0.2:
        del value[at]
    else:
        deeper = isinstance(value[at], (dict, list)) and rng.random() < 0.7
        value[at] = changed(value[at], rng, values) if deeper else one(rng, values)
    return value


def zipped(raw: bytes, rng, content: bytes) -> bytes:
    """The zip with other content in one of its entries."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(file, "w") as new:
        spoilt = one(rng, old.namelist())
        for entry in old.namelist():
            new.writestr(entry, content if entry == spoilt else old.read(entry),
                         zipfile.ZIP_DEFLATED if entry == spoilt else None, 1)
    return file.getvalue()


def inside(raw: bytes, rng, suffix: str) -> bytes:
    """A readable file that holds something else."""
    file = io.BytesIO()
    if suffix == ".pt" and b"constants.pkl" not in raw:     # which only TorchScript has
        content = changed(torch.load(io.BytesIO(raw), weights_only=True), rng, VALUES + TENSORS)
        torch.save(content, file, _use_new_zipfile_serialization=bool(rng.random() < 0.7))
    elif suffix in (".npz", ".features", ".pt"):
        return zipped(raw, rng, one(rng, ARRAYS))
    elif suffix == ".json":
        return json.dumps(changed(json.loads(raw), rng, VALUES)).encode()
    elif suffix == ".npy":
        return one(rng, ARRAYS)
    elif suffix == ".csv":
        return raw.replace(one(rng, re.findall(rb"[^,\n]+", raw)), str(one(rng, VALUES)).encode())
    elif suffix == ".gz":
        return gzip.compress(damaged(gzip.decompress(raw), "huge", rng, suffix))
    else:
        width, height = rng.integers(1, 40, 2).tolist()
        Image.new(one(rng, ["1", "L", "LA", "P", "RGBA", "I;16"]), (width, height**2)).save(
            file, "PNG")
    return file.getvalue()


def bomb(raw: bytes, rng, suffix: str) -> bytes:
    """A small file that holds, or says that it holds, very much."""
    if suffix in (".npz", ".features", ".pt"):
        return zipped(raw, rng, npy((50 * 10**6,), content=bytes(400 * 10**6)))
    if suffix == ".json":
        return re.sub(rb': [^{\[][^,]*,', b": " + b"[" * 10**4 + b"]" * 10**4 + b",", raw, count=1)
    if suffix == ".csv":
        return raw + b"9" * one(rng, [5000, 200_000]) + b",1" * 7 + b"\n"
    if suffix == ".gz":
        return 500 * gzip.compress(bytes(10**6))
    if suffix == ".npy":
        return ARRAYS[0] + raw
    file = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(file, "PNG")
    return file.getvalue()


def damaged(raw: bytes, damage: str, rng, suffix: str) -> bytes:
    """Other bytes. Half of all places are near the beginning or the end."""
    low, high = one(rng, [(0, len(raw))] * 2 + [(0, min(len(raw), 300)),
                                                (max(0, len(raw) - 300), len(raw))])
    a, b, c, d = sorted(rng.integers(low, high, 4).tolist())
    size = one(rng, [4, 8])
    if damage == "flip":
        bits = np.frombuffer(raw, np.uint8).copy()
        bits[[a, b, c, d][:rng.integers(1, 5)]] ^= np.uint8(1 << rng.integers(8))
        return bits.tobytes()
    return {"cut": lambda: raw[:b],
            "swap": lambda: raw[:a] + raw[c:d] + raw[b:c] + raw[a:b] + raw[d:],
            "insert": lambda: raw[:b] + rng.bytes(rng.integers(1, 99)) + raw[b:],
            "huge": lambda: raw[:b] + one(rng, [b"\xff" * size, rng.bytes(size)]) + raw[b + size:],
            "inside": lambda: inside(raw, rng, suffix), "bomb": lambda: bomb(raw, rng, suffix),
            "foreign": lambda: one(rng, FOREIGN)}[damage]()


def replace(file: Path, damage: str, rng) -> None:
    raw = file.read_bytes()
    if damage in ("pipe", "folder", "link"):
        file.unlink()
        {"pipe": lambda: os.mkfifo(file), "folder": file.mkdir,
         "link": lambda: file.symlink_to("nowhere")}[damage]()
    else:
        file.write_bytes(damaged(raw, damage, rng, file.suffix))


def attempt(number: int, valid: Path, work: Path, seconds: float) -> dict:
    """Read input `number`, from which its reader, file and damage follow. The readers' valid files
    have the numbers below zero."""
    rng, (turn, at) = np.random.default_rng(abs(number)), divmod(number, len(READERS))
    folder, pattern, name, read = READERS[at]
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(valid / folder, work)
    file = one(rng, sorted(f for f in work.glob(pattern) if f.is_file()))
    damage = DAMAGE[(turn + at) % len(DAMAGE)] if number >= 0 else "none"
    if number >= 0:
        replace(file, damage, rng)
    said = {"number": number, "reader": name, "file": file.name, "damage": damage}
    print(json.dumps(said), flush=True)         # the last line if the process is ended
    with contextlib.suppress(OSError):          # on Linux the peak starts again
        Path("/proc/self/clear_refs").write_text("5")
    before = timing.peak_bytes(CPU)
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            why = read(work, file)
        outcome = {True: "read", False: "FAILED: not the documented type"}.get(why, "left out")
    except UserError as error:
        outcome, why = "refused", str(error)
    except Exception as error:
        outcome, why = "FAILED", f"{place(error)}: {str(error)[:200]}"
    faulthandler.cancel_dump_traceback_later()
    if isinstance(why, str) and len(why.splitlines()) != 1 and outcome != "FAILED":
        outcome = "FAILED: not one line"
    most = LARGE_BYTES if folder == "pictures" or name == "choose_network" else MORE_BYTES
    if (more := timing.peak_bytes(CPU) - before) > most:
        outcome = f"FAILED: {more / 1e6:.0f} MB more memory, {outcome}"
    return said | {"outcome": outcome, "why": why}


def place(error: Exception) -> str:
    frame = [f for f in traceback.extract_tb(error.__traceback__) if "_mini" in f.filename
             ] or traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at {Path(frame[-1].filename).name}:{frame[-1].lineno}"


def child(first: int, last: int, seconds: float = SECONDS) -> None:
    """Read the valid files and then the inputs first … last - 1; print what came of each."""
    torch.set_num_threads(1)
    if sys.platform == "linux":                 # to protect the machine; `attempt` measures
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "valid")
        for number in (*range(-len(READERS), 0), *range(first, last)):
            said = attempt(number, Path(folder) / "valid", Path(folder) / "work", seconds)
            print(json.dumps(said), flush=True)


def survey(count: int) -> list[dict]:
    """What came of so many inputs, read by another process. After an input that ends it or takes
    too long, a new process goes on, twice at most."""
    found = []
    for _ in range(3):
        command = [sys.executable, "-m", "tests.test_fuzz", str(len(found)), str(count)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
        said = [json.loads(line) for line in done.stdout.splitlines()]
        unread = [one for one in said if one["number"] < 0 and one.get("outcome", "read") != "read"]
        assert len(said) > 2 * len(READERS) - 1 and not unread, (unread, said[-1:], done.stderr)
        found += [one for one in said if one["number"] >= 0 and "outcome" in one]
        if len(found) == count:
            break
        found.append(said[-1] | {"outcome": "FAILED: it ended the process", "why": done.stderr})
    return found


@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_reader_survives_damaged_files(count):
    """A damaged file is read, refused by a UserError of one line, or left out by name, within 60
    seconds and 300 MB (1.5 GB for a picture or a network)."""
    found = survey(count)
    failed = [said for said in found if said["outcome"].startswith("FAILED")]
    assert not failed, "\n".join(map(str, failed))
    assert {said["reader"] for said in found} == {name for _, _, name, _ in READERS}
    assert min(Counter(said["outcome"] for said in found)[kind]
               for kind in ("read", "refused", "left out")) > count / 50


SENSELESS = ["", " ", "-1", "0", "1e400", "nan", "inf", "-inf", "1_000", "٣", "9" * 308, "9" * 400,
             "9" * 5000, "0x10", "1,2", "1x2", "../..", "a" * 300, "\udcff", "None", "--", "=",
             "%s", "{}", "é"]
COMMANDS = {                                    # main, its arguments, its tables of flags
    "train": (train_mini.main, "", [describe.FLAGS]),
    "plan": (train_mini.main, "--plan", [describe.FLAGS]),
    "sample": (sample_mini.main, "RUN", [request.FLAGS]),
    "edit": (sample_mini.main, "RUN --classes=0 --edit=RUN/../pictures/x.png --box=0,0,9,9 "
             "--out=RUN/x.png", [request.FLAGS]),
    "evaluation": (evaluation.main, "RUN/../npz/real.npz RUN/../npz/real.npz", [evaluation.FLAGS]),
    "edit_scores": (edit_scores.main, "RUN", [edit_scores.FLAGS]),
    "parallel": (parallel.main, "RUN", [parallel.FLAGS]),
    "export": (export.main, "RUN --arpg=RUN/../arpg.pt", []),
    **{f"bench {kind}": (bench.main, kind, [{"": bench.KINDS[kind][1]}]) for kind in bench.KINDS}}


class Begins(Exception):
    """The work would begin now, so the flags are accepted."""


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    make(folder := tmp_path_factory.mktemp("valid"))
    return folder


@pytest.fixture
def run(valid, tmp_path, monkeypatch):
    """A run's folder. The current folder is empty. Whatever takes long or writes raises `Begins`.
    """
    monkeypatch.chdir(tmp_path)
    for module, names in (
            (prepare, "check_sizes"), (builtin, "shapes_pictures fashion_pictures"),
            (drawing, "complete_steps"), (retouch, "complete_steps"), (processes.mp, "spawn"),
            (evaluation, "extract"), (edit_scores, "control inpainting shapes_classifier"),
            (export, "write_whole"), (bench, "bench_train"),
            (bench_decode, "bench_decode bench_memory bench_scaling bench_exact"),
            (count, "bench_count")):
        for name in names.split():
            monkeypatch.setattr(module, name, Mock(side_effect=Begins))
    monkeypatch.setattr(evaluation, "JUDGED", ())           # their judges are trained
    monkeypatch.setattr(parallel, "Scorer", Mock(side_effect=Begins))
    monkeypatch.setattr(parallel, "KINDS", Mock(get=lambda _: "shapes"))
    monkeypatch.setattr(edit_scores, "Scorer", Mock(return_value=Mock(model=small())))
    for name in ("load_model", "load_tokenizer"):           # once is enough
        monkeypatch.setattr(checkpoint, name, cache(getattr(checkpoint, name)))
    return valid / "run"


def call(main, arguments: list[str]) -> tuple[int, str, str]:
    """A command's exit code and what it prints on a terminal in UTF-8."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors, newline="", write_through=True)
                for errors in ("strict", "backslashreplace"))
    with (patch.object(sys, "argv", ["command", *arguments]), patch.dict(os.environ),
          contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)):
        try:
            code = code_of(main)
        except Begins:
            code = 0
    return code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()


@pytest.mark.parametrize("share", [8, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_survives_senseless_values(command, share, run):
    """A value, one in `share` of them, is accepted, or ends in exit code 2 and one line. Nothing is
    written before the work begins."""
    main, before, tables = COMMANDS[command]
    before, failed = before.replace("RUN", str(run)).split(), []
    flags = re.findall(r"^  (--[\w-]+)", call(main, [*before[:1], "--help"])[1], re.M)
    assert {row[0] for table in tables for rows in table.values() for row in rows} <= {*flags}
    for i, flag in enumerate(sorted(set(flags))):
        for value in SENSELESS[i % share::share]:
            given = [word for word in before if not word.startswith(flag + "=")]
            try:
                code, _, err = call(main, [*given, f"{flag}={value}"])
                lines = [line for line in err.split("\n") if line and "\r" not in line]
                fine = code == 0 or code == 2 and len(lines) == 1 and "error:" in lines[0]
                why = "" if fine else f"code {code}: {lines}"
            except Exception as error:
                why = f"{place(error)}: {error}"
            if why or os.listdir():
                failed.append(f"{flag}={value[:30]!a} ({len(value)} characters): {why[:300]!a}, "
                              f"in the folder: {os.listdir()}")
                for left in Path().iterdir():
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
    assert not failed, "\n".join(failed)


if __name__ == "__main__":
    child(*map(int, sys.argv[1:]))
