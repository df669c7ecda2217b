"""Checkpoints of models and tokenizers, and which of a run's checkpoints to keep.

The one idea: a checkpoint holds tensors and plain values, never objects, and says what it is.
"""

import hashlib
import os
import zipfile
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from .. import UserError
from ..config import ModelConfig, TokenizerConfig
from ..data.files import also_as, write_whole
from ..model import ARPG
from ..pretrained import load_released_tokenizer, read_file
from ..tokenizer import VQTokenizer

FORMAT = "arpg_mini 1"
CONTENT = {"step": int, "best": float, "config": dict, "classes": list, "guidance": (int, float),
           "guidance_schedule": str, "model": dict, "ema": dict, "optimizer": dict}


def save(path: Path, kind: str, **content) -> None:
    """Write a checkpoint of tensors and plain values. `kind` says what it is."""
    write_whole(path, lambda file: torch.save({"format": FORMAT, "kind": kind, **content}, file))


def load(path: Path, kind: str, **how) -> dict:
    """Read what `save` wrote. UserError names a file of another kind."""
    content = read_file(path, **how)
    if (not isinstance(content, dict) or content.get("format") != FORMAT
            or content.get("kind") != kind):
        raise UserError(f"{path}: is not a {kind} of this program")
    return content


def save_run(out: Path, keep: int, is_best: bool, former: int | None, **content) -> None:
    """Write a run's `model.pt`. The previous one, of step `former`, stays as `model-STEP.pt` until
    `keep` newer ones are written. If the new one is the best so far, it is also `best.pt`."""
    path = out / "model.pt"
    if keep > 1 and former is not None and path.exists():
        also_as(path, out / f"model-{former:08d}.pt")
    save(path, "model", **content)
    if is_best:
        also_as(path, out / "best.pt")
    for file in sorted(out.glob("model-*.pt"), reverse=True)[keep - 1:]:
        file.unlink()


def newest(out: Path) -> tuple[dict | None, list[str]]:
    """The newest readable checkpoint of a run, or None if there are no checkpoints; and for each
    newer one why it can't be read. Damaged ones are renamed, and the one that is found becomes
    `model.pt`. UserError if there are checkpoints and none can be read."""
    wrong, found, damaged = [], [], []
    for path in [out / "model.pt", *sorted(out.glob("model-*.pt"), reverse=True), out / "best.pt"]:
        if path.exists() and not found:
            try:
                found = [whole(path), path]
            except UserError as error:
                wrong.append(str(error))
                damaged.append(path)
    if wrong and not found:
        raise UserError(f"{wrong[0]}; no other checkpoint in {out} can be read either")
    for path in damaged:
        os.replace(path, path.with_suffix(".damaged"))
    if found and found[1] != out / "model.pt":
        also_as(found[1], out / "model.pt")
    return (found[0] if found else None), wrong


def whole(path: Path) -> dict:
    """What a run's checkpoint holds, after all of its checksums are verified."""
    content = load(path, "model")
    try:
        if torn := zipfile.ZipFile(path).testzip():
            raise ValueError(f"the checksum of {torn} in it is wrong")
    except Exception as error:                  # zipfile may raise anything
        raise UserError(f"{path}: not a readable checkpoint ({error})") from None
    return described(path, content, *CONTENT)


def described(path: Path, content: dict, *names: str) -> dict:
    """The content of a checkpoint. UserError names the first of some entries that can't be."""
    if wrong := [name for name in names if not isinstance(content.get(name), CONTENT[name])]:
        raise UserError(f"{path}: has no usable {wrong[0]}")
    return content


def check_fit(module: nn.Module, state: dict, path: Path) -> None:
    """UserError names the first tensor that a module lacks, or that does not fit it."""
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
    given = {name: getattr(tensor, "shape", None) for name, tensor in dict(state).items()}
    if wrong := [name for name in sorted(wanted.keys() | given.keys())
                 if wanted.get(name) != given.get(name)]:
        sizes = [shapes.get(wrong[0], "missing") for shapes in (given, wanted)]
        raise UserError(f"{path}: its {wrong[0]} is {sizes[0]}; the model's is {sizes[1]}")


def fill(module: nn.Module, state: dict, path: Path) -> None:
    """Load tensors into a module. UserError names the first one that does not fit."""
    check_fit(module, state, path)
    module.load_state_dict(state)


def build(path: Path, kind: type[nn.Module], config: type, content: dict, name: str) -> nn.Module:
    """The module whose weights `content` holds under `name`, in evaluation mode. UserError says
    what does not fit, before memory is taken for it."""
    try:
        sizes, state = content["config"], content[name]
        if max(v for k, v in sizes.items() if k.endswith(("layers", "blocks"))) > len(state):
            raise ValueError("fewer tensors than layers")
        with torch.device("meta"):
            module = kind(config(**sizes))
        check_fit(module, state, path)
        module.to_empty(device="cpu").load_state_dict(state)
        return module.eval()
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path}: its sizes or weights can't be used ({type(error).__name__}: "
                        f"{error})") from None


def fingerprint(module: nn.Module) -> str:
    """A checksum of all weights. While it is the same, the ids that they made are valid."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_tokenizer(path: Path, tokenizer: VQTokenizer, **more) -> None:
    save(path, "tokenizer", config=asdict(tokenizer.config), tokenizer=tokenizer.state_dict(),
         **more)


def load_tokenizer(path: Path) -> tuple[VQTokenizer, dict]:
    """The tokenizer in a file, in evaluation mode, and everything that the file holds."""
    content = load(path, "tokenizer")
    return build(path, VQTokenizer, TokenizerConfig, content, "tokenizer"), content


def load_any_tokenizer(path: Path) -> tuple[VQTokenizer, dict]:
    """A tokenizer of this program or a released one, and everything that the file holds."""
    content = read_file(path, mmap=True)
    if isinstance(content, dict) and "format" in content:
        return load_tokenizer(path)
    return load_released_tokenizer(path), {}


def load_model(path: Path, weights: str = "ema") -> tuple[ARPG, dict]:
    """The model in a run's `model.pt`, in evaluation mode, and everything that the file holds.
    weights: "ema", the running average, which samples better; or "model", the newest."""
    content = load(path, "model")
    return build(path, ARPG, ModelConfig, content, weights), content
