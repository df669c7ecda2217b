"""A checkpoint of a released size, filled by the recipe: load it, decode at 256×256, measure.

    python -m tests.golden.full_size arpg-xxl --dtype bfloat16 --images 2 --steps 64

needs as much disk as the released file (1.3, 2.9 or 5.2 GB in the temporary folder) and makes it
anew each time.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch

from arpg_mini import ARPG, VQTokenizer
from arpg_mini.config import TokenizerConfig
from arpg_mini.decoding import decode
from arpg_mini.pretrained import (
    arpg_names,
    load_released_arpg,
    load_released_tokenizer,
    tokenizer_names,
)
from arpg_mini.run.drawing import best_guidance
from arpg_mini.run.presets import presets
from tests.golden.recipe import tensor


def write(path: Path, module: torch.nn.Module, names: dict[str, list[str]]) -> None:
    """A released checkpoint whose tensors have the module's sizes and the recipe's values."""
    shapes = {part: rows.shape for ours, parts in names.items()
              for part, rows in zip(parts, dict(module.named_parameters())[ours].chunk(len(parts)))}
    torch.save({"model": {n: torch.from_numpy(tensor(n, tuple(s))) for n, s in shapes.items()}},
               path)


def peak() -> float:
    """The most memory this process ever had resident, mapped files included, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("preset", choices=["arpg-l", "arpg-xl", "arpg-xxl"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--steps", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arpg, vq = Path(folder) / "arpg.pt", Path(folder) / "vq.pt"
        with torch.device("meta"):
            model, tokenizer = ARPG(presets()[options.preset].model), VQTokenizer(TokenizerConfig())
        # In a process of its own, so that filling does not count as peak memory of loading.
        filling = torch.multiprocessing.get_context("spawn").Process(
            target=write, args=(arpg, model, arpg_names(model.config)))
        filling.start(), filling.join()
        write(vq, tokenizer, tokenizer_names(tokenizer))
        print(f"file {arpg.stat().st_size / 1e9:.2f} GB, before loading {peak():.2f} GB resident")
        before, start = peak(), time.perf_counter()
        model = load_released_arpg(arpg, dtype=getattr(torch, options.dtype))
        size = sum(p.nbytes for p in model.parameters()) / 1e9
        largest = max(p.nelement() for p in model.parameters()) * 4 / 1e9
        print(f"loaded in {time.perf_counter() - start:.1f} s: {size:.2f} GB of {options.dtype}, "
              f"peak {peak():.2f} GB, {(peak() - before) / size:.2f} times the model "
              f"(its largest tensor in the file: {largest:.2f} GB)")
        tokenizer, start = load_released_tokenizer(vq), time.perf_counter()
        ids = decode(model, list(range(options.images)), range(options.images),
                     steps=options.steps, guidance=best_guidance(model.config, options.steps))
        seconds = time.perf_counter() - start
        images = tokenizer.decode(ids.view(-1, 16, 16))
        print(f"{options.images} images of {tuple(images.shape[-2:])} in {options.steps} steps: "
              f"{seconds:.1f} s, tokenizer {time.perf_counter() - start - seconds:.1f} s, peak "
              f"{peak():.2f} GB")


if __name__ == "__main__":
    main()
