"""Files that are no checkpoint, or another one, are named. Nothing in them is run."""

import gc
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from arpg_mini import UserError
from arpg_mini.data.files import npy
from arpg_mini.run import checkpoint
from tests.helpers import tiny_model


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


def test_many_threads_read_headers_of_ids(tmp_path):
    """Broken if a good file looks damaged because another thread reads a header at the same time.
    Python 3.11 mixes them up when memory is collected in between, so that happens often here."""
    np.save(tmp_path / "x.npy", np.arange(6, dtype=np.uint16).reshape(2, 3))
    before, pause, failed = gc.get_threshold(), sys.getswitchinterval(), []

    def busy(*_) -> None:
        sum(i for i in range(300))

    def read(_) -> None:
        try:
            assert npy(tmp_path / "x.npy").tolist() == [[0, 1, 2], [3, 4, 5]]
        except ValueError as error:
            failed.append(str(error))

    try:
        gc.set_threshold(5), sys.setswitchinterval(1e-6), gc.callbacks.append(busy)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(read, range(500)))
    finally:
        gc.set_threshold(*before), sys.setswitchinterval(pause), gc.callbacks.remove(busy)
    assert not failed, f"{len(failed)} of 500 reads failed, such as: {failed[0]}"
