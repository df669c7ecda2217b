"""Files that are no checkpoint, or another one, are named. Nothing in them is run."""

import os
import pickle

import pytest
import torch

from arpg_mini import UserError
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
