"""Saving and loading that survive crashes and hostile files.

The one idea: a file is written beside its place, flushed to the disk and renamed over it, so that
at every moment the name holds one whole file, the old or the new. Loading never unpickles objects.
"""

import contextlib
import hashlib
import os
import shutil
import zipfile
from dataclasses import asdict
from pathlib import Path

import torch

from .config import ModelConfig, TokenizerConfig, UserError
from .model import ARPG
from .tokenizer import VQTokenizer

FORMAT = "arpg_mini 1"


def write_whole(path: Path, write) -> None:
    """Let `write(file)` fill a new file, then put it at `path` in one step."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
        raise UserError(f"{path}: can't be written ({error})") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def also_as(path: Path, other: Path) -> None:
    """Let the file be found under another name too: by a hard link, or else by a copy."""
    part = other.with_name(f"{other.name}.{os.getpid()}.part")
    try:
        try:
            os.link(path, part)
        except OSError:
            shutil.copyfile(path, part)
        os.replace(part, other)
    except OSError as error:
        raise UserError(f"{other}: can't be written ({error})") from error
    finally:
        part.unlink(missing_ok=True)    # renaming one link of a file over another leaves both


def sweep(folder: Path) -> None:
    """Remove what writers that were killed have left half written."""
    for part in folder.glob("*.part"):
        part.unlink(missing_ok=True)


def save(path: Path, kind: str, **content) -> None:
    """Write a checkpoint of tensors and plain values; `kind` says what it is."""
    write_whole(path, lambda file: torch.save({"format": FORMAT, "kind": kind, **content}, file))


def read(path: Path, **how):
    """`torch.load` onto the CPU, never unpickling objects. UserError names an unreadable file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, **how)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # the unpickler of a hostile file may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint, truncated or foreign "
                        f"({reason[:100]})") from None


def load(path: Path, kind: str, **how) -> dict:
    """Read what `save` wrote. UserError names a file that is not that."""
    content = read(path, **how)
    if (not isinstance(content, dict) or content.get("format") != FORMAT
            or content.get("kind") != kind):
        raise UserError(f"{path}: is no {kind} of this program")
    return content


def save_run(out: Path, keep: int, is_best: bool, former: int | None, **content) -> None:
    """Write a run's `model.pt`. The one there, of step `former`, stays as `model-STEP.pt` until
    `keep` newer ones are written; the new one is also `best.pt` if it is the best so far."""
    path = out / "model.pt"
    if keep > 1 and former is not None and path.exists():
        also_as(path, out / f"model-{former:08d}.pt")
    save(path, "model", **content)
    if is_best:
        also_as(path, out / "best.pt")
    for file in sorted(out.glob("model-*.pt"), reverse=True)[keep - 1:]:
        file.unlink()


def newest(out: Path) -> tuple[dict | None, list[str]]:
    """The newest checkpoint of a run that can be read, and why newer ones can't; None if there is
    none at all. UserError if there are some and none can be read.

    Damaged ones are put aside under another name, so that no save takes them for what they were,
    and the one found becomes `model.pt`.
    """
    wrong, found, damaged = [], [], []
    for path in [out / "model.pt", *sorted(out.glob("model-*.pt"), reverse=True), out / "best.pt"]:
        if path.exists() and not found:
            try:
                if zipfile.is_zipfile(path) and (torn := zipfile.ZipFile(path).testzip()):
                    raise UserError(f"{path}: not a readable checkpoint (the checksum of {torn} in "
                                    "it is wrong)")
                found = [load(path, "model"), path]
            except UserError as error:
                wrong.append(str(error))
                damaged.append(path)
    if wrong and not found:
        raise UserError(f"{wrong[0]}; nor can another checkpoint in {out} be read")
    for path in damaged:
        os.replace(path, path.with_suffix(".damaged"))
    if found and found[1] != out / "model.pt":
        also_as(found[1], out / "model.pt")
    return (found[0] if found else None), wrong


def fill(module: torch.nn.Module, state: dict, path: Path) -> None:
    """Load tensors into a module; UserError names the first that doesn't fit."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path}: {str(error).splitlines()[1].strip()}") from None


def fingerprint(module: torch.nn.Module) -> str:
    """A checksum of all weights: what made of them stays valid while it stays the same."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_tokenizer(path: Path, tokenizer: VQTokenizer, **more) -> None:
    save(path, "tokenizer", config=asdict(tokenizer.config), tokenizer=tokenizer.state_dict(),
         **more)


def load_tokenizer(path: Path) -> tuple[VQTokenizer, dict]:
    """The tokenizer in a file, in evaluation mode, and all that the file holds."""
    content = load(path, "tokenizer")
    tokenizer = VQTokenizer(TokenizerConfig(**content["config"]))
    fill(tokenizer, content["tokenizer"], path)
    return tokenizer.eval(), content


def load_model(path: Path, weights: str = "ema") -> tuple[ARPG, dict]:
    """The model in a run's `model.pt`, in evaluation mode, and all that the file holds.

    weights: "ema", the running average that samples best, or "model", the newest.
    """
    content = load(path, "model")
    model = ARPG(ModelConfig(**content["config"]))
    fill(model, content[weights], path)
    return model.eval(), content
