"""Files of ids: encoded in parts by any number of processes, resumed, verified, or read from files
that others made."""

import json

import numpy as np
import pytest

from arpg_mini import UserError
from arpg_mini.data import builtin as data
from arpg_mini.data import ids

MADE_OF = {"pictures": "p", "tokenizer": "t", "views": "center-flip"}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(ids, "PART", 8)


def encode(images):
    """(n, side, side, 3) -> (n, 2, 9): nine pixels of each picture and of its mirror image."""
    return np.stack([view[:, ::8, ::8, 0].reshape(len(view), -1)
                     for view in ids.crops(images, "center-flip", data.SIDE)], axis=1)


def make(stem, source, made_of=MADE_OF, world=1, stop_after=10**9):
    """Encode with `world` processes, one after the other, at most `stop_after` parts each. Return
    the number of encoded parts."""
    done = 0
    for rank in range(world):
        for at, _ in enumerate(ids.encode_parts(source, source.load, encode, stem, made_of, rank,
                                                world), 1):
            done += 1
            if at == stop_after:
                break
    return done


def finish(stem, source, made_of=MADE_OF, **how):
    make(stem, source, made_of, **how)
    ids.put_together(source, stem, made_of)
    return ids.Ids(stem)


def test_ids_are_their_pictures_memory_mapped(tmp_path):
    source = data.shapes_pictures(50, 3)
    made = finish(tmp_path / "train", source)
    assert isinstance(made.ids, np.memmap) and made.ids.dtype == np.uint16
    assert (made.ids == encode(source.images)).all() and made.ids.shape == (50, 2, 9)
    assert (made.labels == source.labels).all() and made.labels.dtype == np.int64
    assert (made.ids[0, 1] == source.images[0][::8, ::-1][:, ::8, 0].ravel()).all()
    assert {p.name for p in tmp_path.iterdir()} == {"train.npy", "train.labels.npy", "train.json"}


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: b"", lambda raw: b"text",
                                    lambda raw: raw[:200] + bytes([raw[200] ^ 1]) + raw[201:]])
def test_a_damaged_part_is_encoded_again(damage, tmp_path):
    source = data.shapes_pictures(50, 3)
    make(tmp_path / "train", source)
    part = ids.part_file(tmp_path / "train", 2)
    part.write_bytes(damage(part.read_bytes()))
    assert make(tmp_path / "train", source) == 1
    assert (finish(tmp_path / "train", source).ids == encode(source.images)).all()


def test_parts_of_something_else_are_not_reused(tmp_path):
    """With another tokenizer, other pictures or other views, everything is encoded again."""
    source = data.shapes_pictures(20, 3)
    make(tmp_path / "train", source)
    assert make(tmp_path / "train", source) == 0
    for key in MADE_OF:
        assert make(tmp_path / "train", source, {**MADE_OF, key: "other"}) == 3
    with pytest.raises(UserError, match="000000.npz: this part is missing"):
        ids.put_together(source, tmp_path / "train", MADE_OF)


def test_every_change_of_a_written_file_is_noticed(tmp_path):
    """Broken if a changed bit of ids or labels, a truncated file or a missing one is not named."""
    stem = tmp_path / "train"
    finish(stem, data.shapes_pictures(20, 3))
    assert ids.verified(stem)["made_of"] == MADE_OF
    for name in ("train.npy", "train.labels.npy"):
        whole = (tmp_path / name).read_bytes()
        for wrong in (whole[:-1], whole[:150] + bytes([whole[150] ^ 4]) + whole[151:]):
            (tmp_path / name).write_bytes(wrong)
            with pytest.raises(UserError, match=f"{name}: has changed since it was written"):
                ids.verified(stem)
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match="does not describe"):
            ids.verified(stem)
        (tmp_path / name).write_bytes(whole)
    for wrong in ("", "{", "[]", "{}", '{"sha256": 1}'):
        (tmp_path / "train.json").write_text(wrong)
        with pytest.raises(UserError, match="train.json: does not describe"):
            ids.verified(stem)


def extracted(root, layout, count=30, views=3, n=4):
    """Write the ids of `count` pictures in one of the two layouts. Ids are below 10; picture i has
    class number classes[i % 3]. The alphabetical order of these numbers is another one."""
    rng = np.random.default_rng(0)
    all_ids, classes = rng.integers(0, 10, (count, views, n)), [2, 10, 11]
    for i in range(count):
        label = classes[i % 3]
        if layout == "codes":
            for folder, value in (("codes", all_ids[i:i + 1]), ("labels", np.array([label]))):
                (root / folder).mkdir(parents=True, exist_ok=True)
                np.save(root / folder / f"{i}.npy", value)
        else:
            (root / str(label)).mkdir(parents=True, exist_ok=True)
            value = all_ids[i:i + 1] if i % 2 else all_ids[i]
            np.save(root / str(label) / f"n{i}.npy", value)
    return all_ids, np.array(classes)[np.arange(count) % 3]


def test_a_folder_of_pictures_is_no_folder_of_ids(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "a.png").write_bytes(b"")
    assert ids.id_files(tmp_path, 10) is None and ids.id_files(tmp_path / "none", 10) is None


@pytest.mark.parametrize("value, says", [
    (np.zeros((1, 3, 4)), "float64"), (np.full((3, 4), 10), "ids 10 to 10, must be 0 to 9"),
    (np.full((3, 4), -1), "ids -1"), (np.zeros((2, 4), int), "2 views of 4 ids, others"),
    (np.zeros((3, 5), int), "3 views of 5 ids"), (np.zeros((3, 0), int), "whole numbers"),
    (np.zeros(4, int), "whole numbers"), (b"", "No data left"), (b"text", "ValueError"),
    (np.array(["a"]), "<U1")])
def test_a_file_that_holds_no_such_ids_is_left_out_by_name(value, says, tmp_path):
    extracted(tmp_path, "classes")
    training, held_out = ids.id_files(tmp_path, 10)
    path = tmp_path / training.files[5]
    path.write_bytes(value) if isinstance(value, bytes) else np.save(path, value)
    kept, tokens = training.load(range(len(training)))
    assert set(range(len(training))) - set(kept) == {5} and len(tokens) == len(training) - 1
    assert list(training.bad) == [str(path)] and says in training.bad[str(path)]


def test_pickles_among_ids_are_not_unpickled(tmp_path):
    extracted(tmp_path, "classes")
    training, _ = ids.id_files(tmp_path, 10)
    np.save(tmp_path / training.files[0], np.array([{}], dtype=object), allow_pickle=True)
    training.load([0])
    assert "Python objects" in training.bad[training.name(0)]


@pytest.mark.parametrize("spoil, says", [
    (lambda r: (r / "labels" / "7.npy").unlink(), "labels/7.npy: no file of one class number"),
    (lambda r: np.save(r / "labels" / "7.npy", np.array([1, 2])), "labels/7.npy: no file of one"),
    (lambda r: np.save(r / "labels" / "7.npy", np.array([-1])), "labels/7.npy: no file of one"),
    (lambda r: np.save(r / "labels" / "7.npy", np.array([0.5])), "labels/7.npy: no file of one"),
    (lambda r: [f.unlink() for f in (r / "codes").glob("*")], "codes has 0 .npy files"),
    (lambda r: [np.save(f, np.array([9999])) for f in (r / "codes").glob("*")], "no ids of this"),
])
def test_unusable_folders_of_ids_are_reported(spoil, says, tmp_path):
    extracted(tmp_path / "x", "codes")
    spoil(tmp_path / "x")
    with pytest.raises(UserError, match=says):
        ids.id_files(tmp_path / "x", 10)


def test_class_folders_of_ids_are_numbered(tmp_path):
    extracted(tmp_path, "classes")
    (tmp_path / "cat").mkdir()
    assert [len(part.classes) for part in ids.id_files(tmp_path, 10)] == [12, 12]   # it is empty
    np.save(tmp_path / "cat" / "1.npy", np.zeros((3, 4), int))
    with pytest.raises(UserError, match="named by class number, not 'cat'"):
        ids.id_files(tmp_path, 10)


def test_the_json_file_describes_its_ids(tmp_path):
    finish(tmp_path / "train", data.shapes_pictures(20, 3))
    said = json.loads((tmp_path / "train.json").read_text())
    assert said.keys() == {"made_of", "classes", "pictures", "left_out", "sha256"}
