"""Make a trained run small enough to ship with the chapters: tutorial/shapes.

    python train_mini.py                              trains runs/shapes
    python -m tutorial.pack runs/shapes tutorial/shapes

The folder holds the averaged weights and the tokenizer in half precision. Its recipe.json describes
them and the cost of the rounding. Sampling, editing and evaluation accept it like a run folder.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from arpg_mini import UserError, training
from arpg_mini.data.files import write_whole
from arpg_mini.data.ids import Ids
from arpg_mini.run import checkpoint
from arpg_mini.run.command import Parser, exit_code


def halved(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's state with its float tensors in half precision. UserError if one is too large."""
    state = {name: x.half() if x.is_floating_point() else x
             for name, x in module.state_dict().items()}
    for name, x in state.items():
        if not x.isfinite().all():
            raise UserError(f"{name}: holds numbers too large for half precision")
    return state


def pack(run: Path, out: Path) -> None:
    model, saved = checkpoint.load_model(run / "model.pt")
    tokenizer, _ = checkpoint.load_tokenizer(run / "tokenizer.pt")
    try:
        described = json.loads((run / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{run / 'config.json'}: can't be read ({error})") from None
    if (out / "config.json").exists():
        raise UserError(f"{out}: holds a run, which would be lost; name another folder")
    held_out = Ids(run / "ids" / "val")
    losses = [training.validation_loss(model, held_out, described["seed"])]
    small, small_tokenizer = halved(model), halved(tokenizer)
    model.load_state_dict(small)
    losses.append(training.validation_loss(model, held_out, described["seed"]))
    out.mkdir(parents=True, exist_ok=True)
    more = {k: saved[k] for k in ("step", "classes", "guidance", "guidance_schedule")}
    checkpoint.save(out / "model.pt", "model", config=asdict(model.config), model=small, ema=small,
                    best=losses[1], **more)
    checkpoint.save(out / "tokenizer.pt", "tokenizer", config=asdict(tokenizer.config),
                    tokenizer=small_tokenizer)
    recipe = {"made by": f"python train_mini.py, python -m tutorial.pack {run} {out}",
              "torch": torch.__version__, "parameters": sum(x.numel() for x in small.values()),
              "validation loss, float32": round(losses[0], 5),
              "validation loss, half precision": round(losses[1], 5), "run": described}
    text = json.dumps(recipe, indent=1) + "\n"
    write_whole(out / "recipe.json", lambda file: file.write(text.encode()))
    print(f"{out}: {sum(f.stat().st_size for f in out.iterdir()) / 1e6:.2f} MB; validation loss "
          f"{losses[0]:.5f} nats in float32, {losses[1]:.5f} in half precision")


def main() -> int:
    parser = Parser("python -m tutorial.pack", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="run folder of train_mini.py")
    parser.add_argument("out", type=Path, help="folder to write")
    options = parser.parse_args()
    return exit_code(parser.prog, lambda: pack(options.run, options.out))


if __name__ == "__main__":
    sys.exit(main())
