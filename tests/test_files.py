"""Checkpoints after crashes, and hostile files; pictures, animations and .npz files."""

import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from arpg_mini import UserError
from arpg_mini.data import images
from arpg_mini.data.files import write_whole
from arpg_mini.run import checkpoint
from arpg_mini.training import to_device
from tests.helpers import tiny_model


def test_a_failed_write_leaves_the_old_file_whole_and_no_other_file(tmp_path):
    path = tmp_path / "model.pt"
    checkpoint.save(path, "model", value=1)

    def half(file):
        file.write(b"half of it")
        raise OSError("No space left on device")

    with pytest.raises(UserError, match="model.pt.*No space"):
        write_whole(path, half)
    assert checkpoint.load(path, "model")["value"] == 1 and os.listdir(tmp_path) == ["model.pt"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/arpg_mini_evil",)


def test_files_that_are_no_checkpoint_are_named_and_never_run(tmp_path):
    path = tmp_path / "model.pt"
    checkpoint.save(path, "model", weights=torch.zeros(1000))
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:len(whole) // 2], pickle.dumps(Evil()), pickle.dumps([1])):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path}: "):
            checkpoint.load(path, "model")
    torch.save({"evil": Evil()}, path)
    with pytest.raises(UserError):
        checkpoint.load(path, "model")
    assert not os.path.exists("/tmp/arpg_mini_evil")
    checkpoint.save(path, "tokenizer")
    with pytest.raises(UserError, match="is not a model"):
        checkpoint.load(path, "model")
    with pytest.raises(UserError, match="no such file"):
        checkpoint.load(tmp_path / "other.pt", "model")


def test_weights_of_another_size_are_named(tmp_path):
    with pytest.raises(UserError, match="embedding.weight"):
        checkpoint.fill(tiny_model(), tiny_model(vocab_size=12).state_dict(), tmp_path / "x.pt")


def test_fingerprints_tell_weights_apart():
    a, b = tiny_model(), tiny_model()
    assert checkpoint.fingerprint(a) == checkpoint.fingerprint(b)
    with torch.no_grad():
        b.norm.gain[3] += 1e-12
    assert checkpoint.fingerprint(a) != checkpoint.fingerprint(b)


def test_pixels_survive_the_round_trip():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    tensor = to_device(pixels, torch.device("cpu"))
    assert tensor.min() == -1 and tensor.max() == 1 and (images.to_uint8(tensor) == pixels).all()


def test_a_grid_puts_every_picture_in_its_place():
    pictures = (np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * 10
                * np.ones((5, 2, 3, 3), np.uint8))
    sheet = np.asarray(images.grid(pictures, columns=3, zoom=2, gap=1))
    assert sheet.shape == (2 * 4 + 1, 3 * 6 + 2, 3)
    assert ((sheet[:4, 7:13] == 10).all() and (sheet[5:, 7:13] == 40).all()
            and (sheet[5:, 14:] == 255).all())


def test_unknown_cells_are_covered_and_no_others():
    pictures = np.full((1, 4, 6, 3), 9, np.uint8)
    covered = images.cover_unknown(pictures,
                                   np.array([[[True, False, True], [False, True, True]]]))
    assert covered[0, ..., 0].tolist() == ([[9, 9, 128, 128, 9, 9]] * 2
                                           + [[128, 128, 9, 9, 9, 9]] * 2)


def test_npz_streams_and_reads_back(tmp_path):
    path, labels = tmp_path / "s.npz", np.array([3, 1, 2])
    all_images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3)).astype(np.uint8)
    images.save_npz(path, iter([all_images[:2], all_images[2:]]), (3, 4, 5, 3), labels, seed=7)
    with np.load(path) as file:
        assert file["seed"] == 7
        assert (file["arr_0"] == all_images).all() and file["arr_0"].dtype == np.uint8
        assert (file["arr_1"] == labels).all() and file["arr_1"].dtype == np.int64


def test_npz_that_comes_out_short_is_an_error_and_no_file(tmp_path):
    with pytest.raises(ValueError, match="2 images came, 3"):
        images.save_npz(tmp_path / "s.npz", iter([np.zeros((2, 4, 5, 3), np.uint8)]),
                        (3, 4, 5, 3), np.zeros(3))
    assert os.listdir(tmp_path) == []


def test_a_gif_has_every_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    images.save_gif(tmp_path / "a.gif", frames)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 3
