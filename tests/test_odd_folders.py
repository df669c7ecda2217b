"""What people's folders, shells and disks do to a run: splits, rubbish, links, names, ranks."""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import unicodedata
from argparse import Namespace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import sample_mini
import train_mini
from arpg_mini import UserError, pretrained
from arpg_mini.config import ModelConfig
from arpg_mini.data import builtin, folders, ids
from arpg_mini.data.files import write_whole
from arpg_mini.measure import judge
from arpg_mini.run import command, describe, prepare, processes, request
from tests.helpers import ROOT, TINY, run

CPU = torch.device("cpu")


def picture(path, colour="red", **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 8), colour).save(path, **how)


def classes(root, *names, count=4):
    for name in names:
        for i in range(count):
            picture(root / name / f"{i}.png", (i, 0, 0))
    return root


def parts_of(root):
    train, held_out = folders.folder_pictures(root, 8)
    return train, held_out, {train.files[i]: train.classes[label]
                             for i, label in enumerate(train.labels)}


# Which folders are classes.

@pytest.mark.parametrize("names, right", [
    (["train/a", "train/b", "test/a"], "train"), (["Train/a", "Test/a"], "Train"),
    (["training_set/a", "test_set/a"], "training_set"), (["test/a", "val/a"], ""),
    (["train2017/a", "val2017/a", "extra/a"], "train2017"), (["validation/a", "test/a"], ""),
    (["ILSVRC/Data/CLS-LOC/train/n01", "ILSVRC/Data/CLS-LOC/train/n02"], "Data/CLS-LOC/train"),
    (["images/a", "images/b"], "images"), (["x/a/b/c", "y/a"], "x/a/b")])
def test_parts_and_containers_of_classes_are_refused(names, right, tmp_path):
    """The message names the folder to give instead, if it can be told."""
    root = classes(tmp_path, *names)
    with pytest.raises(UserError) as mistake:
        folders.folder_pictures(root, 8)
    assert "classes" in str(mistake.value) and f"such as {root}" in str(mistake.value)
    assert str(mistake.value).endswith(right)


def test_splits_without_class_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="test, train are parts of a data set, not classes"):
        folders.folder_pictures(classes(tmp_path, "train", "test"), 8)


@pytest.mark.parametrize("names", [["bus", "car", "train"], ["a/deep/1", "a/deep/2", "b"],
                                   ["tests", "trained"], ["dev", "ops"]])
def test_a_class_may_be_named_like_a_split_or_have_folders(names, tmp_path):
    train, _, _ = parts_of(classes(tmp_path, *names))
    assert train.classes == sorted({name.split("/")[0] for name in names})


def test_kaggles_layout_of_imagenet(tmp_path):
    """Classes below train, a flat val and test next to it."""
    classes(tmp_path, "train/n01", "train/n02", "val", "test")
    train, held_out, _ = parts_of(tmp_path)
    assert train.classes == ["n01", "n02"] and len(train) + len(held_out) == 8
    assert str(tmp_path / "val") in train.left_out


def odd(place, kind):
    """A folder without a usable picture."""
    (place / "x" / "y" if kind == "folders" else place).mkdir(parents=True)
    if kind == "hidden":
        picture(place / "._1.png")
    for i in range(3):
        if kind in ("text", "broken"):
            (place / f"{i}.{'txt' if kind == 'text' else 'png'}").write_text("no picture")


@pytest.mark.parametrize("kind", ["empty", "text", "hidden", "broken", "folders"])
def test_a_folder_without_a_usable_picture_is_no_class(kind, tmp_path):
    """Class numbers are those of the others, and the folder is named."""
    odd(classes(tmp_path, "bird", "dog") / "cat", kind)
    train, held_out, label = parts_of(tmp_path)
    assert train.classes == held_out.classes == ["bird", "dog"]
    assert all(file.startswith(name) for file, name in label.items())
    assert train.left_out[str(tmp_path / "cat")].startswith("no class: ")


def test_pictures_are_recognised_by_content(tmp_path):
    """Any ending, and none; other files are named, after 16 of an ending without another look."""
    root = classes(tmp_path, "a")
    for name in ("x.jfif", "x.JPG", "x.jpe", "photo", "x.txt", "x.png.bak"):
        picture(root / "b" / name, format="JPEG")
    for i in range(20):
        (root / "b" / f"{i}.json").write_text("{}")
    picture(root / "b" / "z.json", format="PNG")
    train, held_out, _ = parts_of(root)
    found = {f for part in (train, held_out) for f in part.files if f[0] == "b"}
    assert found == {f"b/{name}" for name in ("x.jfif", "x.JPG", "x.jpe", "photo", "x.txt",
                                             "x.png.bak")}
    assert len(train.left_out) == 21 and not train.load(range(len(train)))[0].size < len(train)


def test_rubbish_links_and_pipes_are_named_and_not_trained_on(tmp_path):
    root = classes(tmp_path / "d", "a", "b")
    picture(root / "a" / "@eaDir" / "0.png" / "SYNOPHOTO_THUMB_M.jpg")
    picture(root / "__MACOSX" / "1.png")
    picture(root / "loose.png")
    (root / "a" / "gone.png").symlink_to("/nonexistent/x.png")
    (root / "a" / "again").symlink_to(root / "a")
    os.mkfifo(root / "b" / "pipe.png")
    picture(tmp_path / "elsewhere" / "9.png")
    (root / "b" / "linked").symlink_to(tmp_path / "elsewhere")
    train, held_out, label = parts_of(root)
    assert sorted(train.files + held_out.files) == sorted(
        [f"{c}/{i}.png" for c in "ab" for i in range(4)] + ["b/linked/9.png"])
    assert {os.path.relpath(f, root): why.split(",")[0] for f, why in train.left_out.items()} == {
        "a/@eaDir": "made by a file system or a viewer", "loose.png": "lies in no class folder",
        "__MACOSX": "made by a file system or a viewer",
        "a/gone.png": "a link to /nonexistent/x.png", "b/pipe.png": "no regular file",
        "a/again": "a link to a folder that it lies in"}


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(0, 2**31))
def test_parts_are_disjoint_and_every_class_is_trained(sizes, salt):
    """And the rest of the files do not notice a new one."""
    def split(sizes):
        files = [folders.Listed(f"{salt}/{label}/{i}.png", label, 1, 1)
                 for label, size in enumerate(sizes) for i in range(size)]
        kind = folders.Kind({".png"}, lambda path: False, lambda path: None)
        stay = {path for path, _ in folders.usable(Path("/"), sizes, files, kind)}
        return [{f.path: f.label for f in part}
                for part in folders.hold_out(Path("d"), files, stay)]

    if max(sizes) == 1:
        with pytest.raises(UserError, match="one file per class; at least one class needs two"):
            split(sizes)
        return
    train, held_out = split(sizes)
    assert not train.keys() & held_out.keys() and len(train) + len(held_out) == sum(sizes)
    assert held_out and set(train.values()) == set(range(len(sizes)))
    due = {path for path in held_out if sizes[held_out[path]] > 1}
    again = split([*sizes, 2])[1]
    assert len(held_out) == 1 or due <= again.keys()


def test_the_picture_that_can_be_read_is_trained_on(tmp_path):
    """A class whose other files are damaged keeps it, whatever its checksum."""
    for name in "abcdefghijklmnopqrst":
        classes(tmp_path, name, count=1)
        (tmp_path / name / "broken.png").write_bytes(b"\x89PNG")
    train, held_out, label = parts_of(tmp_path)
    kept, _ = train.load(range(len(train)))
    assert {label[train.files[i]] for i in kept} == set(train.classes) and len(train.classes) == 20


@pytest.mark.parametrize("codes, labels", [("codes", "labels"),
                                           ("imagenet256_codes", "imagenet256_labels")])
def test_ids_as_llamagens_script_writes_them(codes, labels, tmp_path):
    for folder in (codes, labels):
        (tmp_path / folder).mkdir()
    for i in range(40):
        np.save(tmp_path / codes / f"{i}.npy", np.full((1, 2, 16), i))
        np.save(tmp_path / labels / f"{i}.npy", np.array([i % 3]))
    for part in ids.id_files(tmp_path, 64):
        rows, tokens = part.load(range(len(part)))
        assert (tokens[:, 0, 0] % 3 == part.labels[rows]).all() and part.classes == ["0", "1", "2"]
    (tmp_path / "b_codes").mkdir(), (tmp_path / "b_labels").mkdir()
    with pytest.raises(UserError, match="holds b_codes and .*; only one"):
        ids.id_files(tmp_path, 64)


def test_ids_need_their_tokenizer(mistake, tmp_path):
    (tmp_path / "d" / "0").mkdir(parents=True)
    np.save(tmp_path / "d" / "0" / "1.npy", np.zeros((2, 16), int))
    assert ("--tokenizer FILE must name the tokenizer that made them"
            in mistake(train_mini, "--data", tmp_path / "d"))


# The line at the start of a run.

def start_line(tmp_path, capsys, *flags) -> str:
    """What `begin`, with which a run starts, prints."""
    options = describe.parse(["--side", "16", "--out", str(tmp_path / "x"), *map(str, flags)])
    with pytest.raises(StopIteration), pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare.checkpoint, "save_tokenizer", lambda *_: next(iter(())))
        patch.setattr(prepare, "train_tokenizer", lambda *_: next(iter(())))
        prepare.begin(describe.describe_run(options), options, None, CPU)
    return capsys.readouterr().out.splitlines()[-1]


def test_every_start_says_what_the_classes_are(finished, tmp_path, capsys, monkeypatch):
    root = classes(tmp_path / "d", *"abcdefghij", count=20)
    line = start_line(tmp_path / "1", capsys, "--data", root)
    assert line.startswith(f"{root}: 10 classes (a, b, c, d, e, f, g, h, …), 200 pictures, ")
    monkeypatch.setattr(prepare, "load_pictures", lambda run: [
        builtin.shapes_pictures(30, 0), builtin.shapes_pictures(3, 1)])
    assert start_line(tmp_path / "2", capsys) == (
        "shapes: 10 classes (circle, ring, triangle, square, bar, pole, cross, saltire, …), "
        "33 pictures, 3 held out")
    tokenizer = finished[0] / "tokenizer.pt"
    line = start_line(tmp_path / "3", capsys, "--data", finished[0], "--tokenizer", tokenizer)
    assert line.startswith(f"{finished[0]}: 2 classes (cat, dog), 40 pictures, ")
    for i in range(40):
        (tmp_path / "ids" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "ids" / str(i % 2) / f"{i}.npy", np.zeros((1, 16), int))
    line = start_line(tmp_path / "4", capsys, "--data", tmp_path / "ids", "--tokenizer", tokenizer)
    assert line.startswith(f"{tmp_path / 'ids'}: 2 classes (0, 1), 40 pictures, ")


def test_what_was_left_out_is_said_once_and_stored(tmp_path):
    root = classes(tmp_path / "d", "a", "b, c", count=20)
    (root / "a" / "notes.txt").write_text("no picture")
    (root / "a" / "0.png").write_bytes(b"\x89PNG")
    done = run("train_mini.py", "--data", root, "--side", 16, *TINY, "--out", tmp_path / "x",
               "--device", "cpu")
    assert f"{root}: 2 classes (a, 'b, c'), 40 pictures, " in done.stdout
    told = re.findall(r"left out: (\S+): ", done.stderr)
    assert told == [str(root / "a" / "notes.txt"), str(root / "a" / "0.png")]
    stored = [json.loads((tmp_path / "x" / "ids" / f"{part}.json").read_text(encoding="utf-8"))
              for part in ("train", "val")]
    assert [name for about in stored for name in about["left_out"]] == told


# The run folder.

def test_a_new_run_folder_takes_one_process(tmp_path, monkeypatch):
    """Broken if the lock is taken only when the run is described, after minutes of work."""
    monkeypatch.setattr(prepare, "held", [])
    root, out = classes(tmp_path / "d", "a", "b"), tmp_path / "x"
    options = describe.parse(["--data", str(root), "--side", "16", "--out", str(out)])
    run = describe.describe_run(options)
    prepare.lock(out)
    with pytest.raises(UserError, match=f"--out {out}: another process is using it"):
        prepare.begin(run, options, None, CPU)
    assert os.listdir(out) == [".lock"]


@pytest.mark.parametrize("out, says", [
    ("gone", "gone is a link to /nonexistent, which does not exist"),
    ("gone/run", "gone is a link to /nonexistent, which does not exist"),
    ("file/run", "file is not a folder"), ("file", "file is not a folder"),
    ("/proc/run", r"can't be made or written \(No such file or directory\)")])
def test_a_run_folder_that_cant_be_made_is_refused(out, says, tmp_path, mistake):
    classes(tmp_path / "d", "a", "b")
    (tmp_path / "gone").symlink_to("/nonexistent")
    (tmp_path / "file").write_text("")
    assert re.search(f"--out {out}: {says}", mistake(
        train_mini, "--data", "d", "--out", out, "--side", 16, "--device", "cpu"))


def test_the_same_data_may_be_spelled_otherwise(finished, pictures, monkeypatch):
    monkeypatch.chdir(pictures.parent)
    (link := pictures.parent / "link").unlink(missing_ok=True)
    link.symlink_to(pictures)
    out = ["--resume", "--out", str(finished[0]), "--data"]
    for spelled in (pictures, f"{pictures}/", f"./{pictures.name}", "link"):
        assert describe.describe_run(describe.parse([*out, str(spelled)]))["data"] == str(pictures)
    with pytest.raises(UserError, match="--data .*: the run in .* was started with"):
        describe.describe_run(describe.parse([*out, "."]))


def test_what_a_full_disk_says_is_reported(tmp_path):
    """torch reports a wrong position in its file. The reason is the system's."""
    def write(file):
        raise RuntimeError("unexpected pos 190007680 vs 190007572")

    real = open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.open", lambda *how, **named: FullFile(real(*how, **named)))
        with pytest.raises(UserError, match=r"x.pt: can't be written \(No space left on device\)"):
            write_whole(tmp_path / "x.pt", write)
    with pytest.raises(UserError, match="x.pt: can't be written .unexpected pos"):
        write_whole(tmp_path / "x.pt", write)
    assert os.listdir(tmp_path) == []


class FullFile:
    """A file on a full disk."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        raise OSError(28, "No space left on device")


# Names of classes, and of files.

NAMES = ["café", "cross, saltire", "3", "tench, Tinca tinca", "tench"]


@pytest.mark.parametrize("text, numbers", [
    ("tench, Tinca tinca", [3]), ("tench,Tinca tinca,tench", [3, 4]), ("tench,tench", [4, 4]),
    ("cross,saltire,0", [1, 0]), (unicodedata.normalize("NFD", "café"), [0]),
    (" café , 4", [0, 4]), ("0,1,2,3,4", [0, 1, 2, 3, 4])])
def test_classes_are_named_or_numbered(text, numbers):
    names = [unicodedata.normalize("NFD", name) for name in NAMES]
    assert request.pick_classes("--classes", text, names) == numbers
    assert request.pick_classes("--classes", text, NAMES) == numbers


def test_a_number_that_is_another_class_name_is_said(capsys):
    assert request.pick_classes("--classes", "3", NAMES) == [3]
    assert "the class named '3' has number 2" in capsys.readouterr().err


@pytest.mark.parametrize("text, says", [("cross", "'cross'"), ("5", "'5'"), ("", "''"),
                                        ("tench,Tinca", "'Tinca'"), ("0,,1", "''")])
def test_unknown_classes_are_named(text, says):
    with pytest.raises(UserError, match=f"--was {says}: must be 0 to 4 or a name"):
        request.pick_classes("--was", text, NAMES)


@pytest.mark.parametrize("flag, name, right", [
    ("--out", "s.jpg", ".png"), ("--gif", "s.mp4", ".gif"), ("--npz", "s.zip", ".npz"),
    ("--out", "s", ".png"), ("--out", "png", ".png")])
def test_a_name_that_promises_another_format_is_refused(flag, name, right, finished, mistake):
    said = mistake(sample_mini, finished[0], flag, name)
    assert f"{flag} {name}: must end in {right}" in said


def test_the_next_command_works(tmp_path, finished):
    """Also after a run of four tokens, in a folder with a space, from another folder."""
    root = tmp_path / "d"
    for name in ("tench, Tinca tinca", unicodedata.normalize("NFD", "café")):
        classes(root, name, count=20)
    out = tmp_path / "a run"
    done = run("train_mini.py", "--data", root, "--side", 8, *TINY, "--out", out, "--device", "cpu",
               cwd=tmp_path)
    script, *flags = shlex.split(done.stdout.splitlines()[-1].removeprefix("next: python "))
    (other := tmp_path / "other").mkdir()
    run(script, *flags, "--count", 2, "--classes", "tench, Tinca tinca,café", cwd=other)
    assert sorted(os.listdir(other)) == ["samples.png", "steps.gif"]


# Shells and launchers.

RANKS = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost",
         "MASTER_PORT": "29500"}


@pytest.mark.parametrize("unset", RANKS)
def test_left_over_rank_variables_are_ignored_and_said(unset, monkeypatch, capsys):
    """A launcher sets all of them. Unset or empty, the others mean nothing."""
    for value in (None, ""):
        for name, usual in RANKS.items():
            monkeypatch.setenv(name, usual)
        monkeypatch.delenv(unset) if value is None else monkeypatch.setenv(unset, value)
        assert command.launcher() is None
        assert processes.launch(lambda device: 7, 1, "cpu") == 7
        assert "ignored, since a launcher sets all of" in capsys.readouterr().err
    monkeypatch.setenv(unset, RANKS[unset])
    assert command.launcher() == (1, 4, 0)


@pytest.mark.parametrize("wrong", [{"RANK": "x"}, {"RANK": "4"}, {"WORLD_SIZE": "0"},
                                   {"LOCAL_RANK": "-1"}, {"MASTER_PORT": "http"}])
def test_impossible_ranks_are_named(wrong, monkeypatch):
    for name, value in (RANKS | wrong).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="{}={}.*unset them".format(*next(iter(wrong.items())))):
        command.launcher()


def test_several_machines_meet_on_the_interface_between_them(monkeypatch):
    """Gloo would take the interface of the host's own name. Broken if one machine's processes are
    touched, or a variable that is set."""
    monkeypatch.setattr(processes.dist, "rendezvous", Mock(side_effect=StopIteration))
    for local, before, expected in (("2", None, "lo"), ("4", None, None), ("2", "eth7", "eth7"),
                                   (None, None, None)):
        variables = {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": local,
                     "GLOO_SOCKET_IFNAME": before}
        for name, value in (RANKS | variables).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        with pytest.raises(StopIteration):
            processes.meet("gloo")
        assert os.environ.get("GLOO_SOCKET_IFNAME") == expected, f"{local}, {before}"
    assert command.interface_to("no such host") is None
    monkeypatch.setattr(command, "fcntl", None)
    assert command.interface_to("127.0.0.1") is None


@pytest.mark.parametrize("rank", [0, 1])
def test_waiting_for_others_is_said_and_ends(rank, monkeypatch, capfd):
    """All five variables are left over: nobody else will come."""
    with processes.socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    left = RANKS | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": port}
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "SAY", 0.1)
    monkeypatch.setattr(processes, "MEETING", processes.timedelta(seconds=1))
    begun = time.monotonic()
    with pytest.raises(UserError, match=f"localhost:{port}: did not meet 1 other process"):
        processes.meet("gloo")
    assert time.monotonic() - begun < 30
    assert f"waiting for 1 other processes at localhost:{port}" in capfd.readouterr().err


def test_a_terminal_that_knows_only_ascii_gets_everything():
    probe = ("from arpg_mini.run.command import Parser\nParser('x')\n"
             "import sys\nprint('24×24 ±', '\\udcff')\nprint('…', file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True,
                          env=os.environ | {"PYTHONIOENCODING": "ascii"}, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.startswith("24\\xd724"), done.stderr


def test_a_judge_that_cant_be_stored_is_used(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(judge, "shapes_classifier", lambda: judge.Classifier(10))
    (tmp_path / "file").write_text("")
    assert isinstance(judge.load_judge("shapes", tmp_path / "file" / "x.pt"), judge.Classifier)
    assert "the judge was not stored for the next time" in capsys.readouterr().err


# The authors' checkpoints.

@given(st.lists(st.sampled_from(sorted(pretrained.ADDED)), max_size=4), st.integers(0, 3))
def test_wrappers_in_names_are_taken_off_in_any_nesting(added, at):
    state = {"layers.self_dec.0.attn.weight": torch.ones(2), "norm.weight": torch.ones(1)}
    wrapped = {}
    for name, tensor in state.items():
        parts = name.split(".")
        wrapped[".".join([*parts[:at], *added, *parts[at:]])] = tensor
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.pt"
        torch.save({"state_dict": {"model": wrapped}}, path)
        assert pretrained.read(path).keys() == state.keys()


def test_arguments_in_a_checkpoint_are_read_and_other_objects_named(tmp_path):
    state = {"norm.weight": torch.ones(1)}
    for more in (Namespace(lr=1e-4, data="x", inner=Namespace(path=tmp_path)), None, {"a": [1.5]}):
        torch.save({"model": state, "optimizer": {}, "steps": 3, "args": more}, tmp_path / "x.pt")
        assert pretrained.read(tmp_path / "x.pt").keys() == state.keys()
    torch.save({"model": state, "args": ModelConfig()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="holds an object of arpg_mini.config.ModelConfig; save"):
        pretrained.read(tmp_path / "x.pt")
