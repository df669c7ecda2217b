"""The authors' checkpoints: ARPG-L, -XL, -XXL and LlamaGen's VQ-16 tokenizer.

The one idea: a table gives, for each of our tensors, the released tensors it is made of. Where this
package computes several products as one (q, k and v; w1 and w3; the shared keys and values), the
released tensors are stacked by rows. The sizes, the layers and the number of classes follow from
the shapes of the tensors.
"""

import re
import zipfile
from argparse import Namespace
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor, nn

from . import UserError
from .config import ModelConfig, TokenizerConfig
from .model import ARPG
from .tokenizer import VQTokenizer

WRAPPERS = ("ema", "model", "module", "state_dict")  # keys of the weights in training checkpoints
# Parts of names that DDP, torch.compile and FSDP put in, anywhere and in any nesting.
ADDED = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
PLAIN = [Namespace, (PurePosixPath, "pathlib.PosixPath")]  # what such arguments consist of
REOPEN = 2**28                                       # after so many bytes the file is mapped again
UNUSED = "quantize.codebook_used"                    # a counter of the tokenizer's training


def arpg_names(config: ModelConfig) -> dict[str, list[str]]:
    """The names of our tensors -> the released tensors they are made of, stacked by rows."""
    names = {"embedding.weight": ["embeddings.weight"], "head.weight": ["head.weight"],
             "kv_norm.gain": ["layers.norm.weight"], "norm.gain": ["norm.weight"],
             "kv.weight": ["layers.to_k.weight", "layers.to_v.weight"]}
    for ours, theirs, layers in (("content", "self_dec", config.content_layers),
                                 ("query", "cross_dec", config.query_layers)):
        into = {"content": ("qkv", "qkv"), "query": ("q", "q")}[ours]
        for i in range(layers):
            mine, block = f"{ours}.{i}.", f"layers.{theirs}.{i}."
            names |= {
                f"{mine}attention_norm.gain": [f"{block}attn_norm.weight"],
                f"{mine}attention.{into[0]}.weight": [f"{block}attn.to_{x}.weight"
                                                      for x in into[1]],
                f"{mine}attention.out.weight": [f"{block}attn.proj.weight"],
                f"{mine}ffn_norm.gain": [f"{block}ffn_norm.weight"],
                f"{mine}ffn.w13.weight": [f"{block}ffn.w1.weight", f"{block}ffn.w3.weight"],
                f"{mine}ffn.w2.weight": [f"{block}ffn.w2.weight"]}
    return names


def tokenizer_names(tokenizer: VQTokenizer) -> dict[str, list[str]]:
    """The same for a tokenizer, whose two Sequentials are matched layer by layer."""
    c, levels = tokenizer.config, len(tokenizer.config.multipliers)
    middle, end = ["mid.0", "mid.1", "mid.2"], ["norm_out", "", "conv_out"]
    places = {"encoder": ["conv_in"], "decoder": ["conv_in", *middle]}
    for part, blocks, attends, change in (("encoder", c.encoder_blocks, levels - 1, "downsample"),
                                          ("decoder", c.decoder_blocks, 0, "upsample")):
        for i in range(levels):
            for j in range(blocks):
                places[part].append(f"conv_blocks.{i}.res.{j}")
                if i == attends:
                    places[part].append(f"conv_blocks.{i}.attn.{j}")
            if i < levels - 1:
                places[part].append(f"conv_blocks.{i}.{change}")
    places["encoder"] += [*middle, *end]
    places["decoder"] += end
    names = {"codebook.rows": ["quantize.embedding.weight"]}
    for part, layers in places.items():
        for at, place in enumerate(layers):
            for name, _ in getattr(tokenizer, part)[at].named_parameters():
                theirs = re.sub(r"^skip\.", "nin_shortcut.", re.sub(r"^out\.", "proj_out.", name))
                names[f"{part}.{at}.{name}"] = [f"{part}.{place}.{theirs}"]
    for ours, theirs in (("to_code", "quant_conv"), ("from_code", "post_quant_conv")):
        names |= {f"{ours}.{x}": [f"{theirs}.{x}"] for x in ("weight", "bias")}
    return names


def read_file(path: Path, mmap: bool = False):
    """`torch.load` onto the CPU, never unpickling objects, except the arguments that the authors'
    training scripts add (`PLAIN`). mmap: map tensors from the file if possible, instead of reading
    them. UserError names an unreadable file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped and any(entry.compress_type for entry in zipfile.ZipFile(path).infolist()):
            raise ValueError("it is compressed")
        with torch.serialization.safe_globals(PLAIN):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipped)
    except Exception as error:  # the unpickler of a hostile file may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"it holds an object of {found[1]}; save its weights alone"
        raise UserError(f"{path}: not a readable checkpoint ({reason})") from None


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, wrapped or bare, mapped from the file if possible.

    If there are several sets of weights, the running average (`ema`) is used.
    """
    state = read_file(path, mmap=True)
    while isinstance(state, dict) and (inner := [state[wrapper] for wrapper in WRAPPERS
                                                 if isinstance(state.get(wrapper), dict)]):
        state = inner[0]
    if not isinstance(state, dict) or not state or not all(
            isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"{path}: holds no tensors by name, bare or as {', '.join(WRAPPERS)}")
    return {".".join(part for part in name.split(".") if part not in ADDED): tensor
            for name, tensor in state.items()}


def some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def fill(module: nn.Module, names: dict[str, list[str]], path: Path) -> None:
    """Copy a checkpoint's tensors into a module, a few at a time, and convert them to its dtype.

    UserError names tensors that are missing, unknown or of another shape. The file is mapped again
    after every few tensors, so that only those are in memory in addition to the module.
    """
    state, ours = read(path), dict(module.named_parameters())
    wanted = {name for parts in names.values() for name in parts}
    if missing := wanted - set(state):
        raise UserError(f"{path}: lacks {some(missing)}")
    if unknown := set(state) - wanted - {UNUSED}:
        raise UserError(f"{path}: has {some(unknown)}, which this model has no place for")
    for name, parts in names.items():
        for part, rows in zip(parts, ours[name].chunk(len(parts))):
            if not state[part].is_floating_point() or state[part].layout != torch.strided:
                raise UserError(f"{path}: {part} is {state[part].dtype}, {state[part].layout}; "
                                "weights are dense floating-point numbers")
            if state[part].shape != rows.shape:
                raise UserError(f"{path}: {part} is {tuple(state[part].shape)}; with the other "
                                f"tensors' sizes it would be {tuple(rows.shape)}")
    mapped = 0
    with torch.no_grad():
        for name, parts in names.items():
            for part, rows in zip(parts, ours[name].chunk(len(parts))):
                if mapped > REOPEN:
                    del state
                    state, mapped = read(path), 0
                rows.copy_(state[part])
                if not rows.isfinite().all():
                    raise UserError(f"{path}: {part} holds numbers that are not finite")
                mapped += state[part].nbytes


def shape(state: dict[str, Tensor], name: str, dims: int, path: Path) -> tuple[int, ...]:
    if name not in state or state[name].ndim != dims:
        raise UserError(f"{path}: is no such released model: lacks {name} ({dims} dimensions)")
    return tuple(state[name].shape)


def count(state: dict[str, Tensor], pattern: str) -> int:
    """How many different numbers the names have in the place of the pattern's group."""
    return len({m.group(1) for name in state if (m := re.match(pattern, name))})


def empty(kind: type[nn.Module], config, dtype: torch.dtype, device) -> nn.Module:
    """A module with uninitialised weights, in evaluation mode."""
    with torch.device("meta"):
        module = kind(config).to(dtype)
    return module.to_empty(device=device).eval()


def load_released_arpg(path: str | Path, head_dim: int = 64, grid: tuple[int, int] = (16, 16),
                       dtype: torch.dtype = torch.float32, device="cpu") -> ARPG:
    """The ARPG in a released checkpoint, in evaluation mode. `head_dim` and `grid` do not follow
    from the tensors; the defaults are those of the released models. UserError says what is wrong.
    """
    path = Path(path)
    state = read(path)
    rows, dim = shape(state, "embeddings.weight", 2, path)
    vocab, _ = shape(state, "head.weight", 2, path)
    hidden, _ = shape(state, "layers.self_dec.0.ffn.w1.weight", 2, path)
    if dim % head_dim:
        raise UserError(f"{path}: head_dim {head_dim} does not divide its width, {dim}")
    try:
        config = ModelConfig(
            dim=dim, heads=dim // head_dim, grid=grid, vocab_size=vocab, ffn_hidden=hidden,
            num_classes=rows - vocab - 3,
            content_layers=count(state, r"layers\.self_dec\.(\d+)\."),
            query_layers=count(state, r"layers\.cross_dec\.(\d+)\."))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    del state
    model = empty(ARPG, config, dtype, device)
    fill(model, arpg_names(config), path)
    return model


def load_released_tokenizer(path: str | Path, device="cpu") -> VQTokenizer:
    """The tokenizer in a released checkpoint, in evaluation mode, float32."""
    path = Path(path)
    state = read(path)
    channels = max(1, shape(state, "encoder.conv_in.weight", 4, path)[0])
    levels = range(max(1, count(state, r"encoder\.conv_blocks\.(\d+)\.")))
    rows, code_dim = shape(state, "quantize.embedding.weight", 2, path)
    widths = [shape(state, f"encoder.conv_blocks.{i}.res.0.conv1.weight", 4, path)[0]
              for i in levels]
    try:
        config = TokenizerConfig(
            channels=channels, multipliers=tuple(w // channels for w in widths),
            encoder_blocks=count(state, r"encoder\.conv_blocks\.0\.res\.(\d+)\."),
            decoder_blocks=count(state, r"decoder\.conv_blocks\.0\.res\.(\d+)\."),
            latent_channels=shape(state, "encoder.conv_out.weight", 4, path)[0],
            codebook_size=rows, code_dim=code_dim)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    tokenizer = empty(VQTokenizer, config, torch.float32, device)
    tokenizer.codebook.idle.zero_()
    fill(tokenizer, tokenizer_names(tokenizer), path)
    return tokenizer
