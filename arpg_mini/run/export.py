"""`python -m arpg_mini.run.export`: write a run in the authors' layout, for their code."""

import sys
from pathlib import Path

import torch
from torch import Tensor

from .. import UserError
from ..data.files import write_whole
from ..model import ARPG
from ..pretrained import UNUSED, arpg_names, tokenizer_names
from ..tokenizer import VQTokenizer
from . import checkpoint
from .command import Parser, exit_code


def released(module: ARPG | VQTokenizer) -> dict[str, Tensor]:
    """A model's tensors under the released names. UserError if the released code has no such model.
    """
    c = module.config
    if isinstance(module, ARPG):
        for name, has, needs in (("rope_base", c.rope_base, 10000.0),
                                 ("grid", tuple(c.grid), (c.grid[0],) * 2),
                                 ("control_stride", c.control_stride, 0),
                                 ("query_layers", c.query_layers, c.content_layers)):
            if has != needs:
                raise UserError(f"{name} {has}: the released code only knows {needs}")
    elif c.local_encoder or c.decoder_blocks != c.encoder_blocks + 1:
        raise UserError("local_encoder, or decoder_blocks that are not encoder_blocks + 1: the "
                        "released tokenizer has no such layers")
    names = (arpg_names(c) if isinstance(module, ARPG) else tokenizer_names(module))
    ours = dict(module.named_parameters())
    state = {part: rows.detach().clone() for name, parts in names.items()
             for part, rows in zip(parts, ours[name].chunk(len(parts)))}
    if isinstance(module, VQTokenizer):
        state[UNUSED] = torch.zeros(65536)
    return state


def main() -> int:
    parser = Parser("python -m arpg_mini.run.export", description="Write a run in the released "
                    "layout, {'model': tensors by name}, for the authors' code.")
    parser.add_argument("run", type=Path, help="run folder, as train_mini.py leaves it")
    parser.add_argument("--arpg", type=Path, help="file to write the model to")
    parser.add_argument("--tokenizer", type=Path, help="file to write the tokenizer to")
    options = parser.parse_args()

    def work() -> None:
        if not options.arpg and not options.tokenizer:
            raise UserError("nothing to write: give --arpg FILE, --tokenizer FILE or both")
        places = [f.resolve() for f in (options.arpg, options.tokenizer) if f]
        places += [(options.run / name).resolve() for name in ("model.pt", "tokenizer.pt")]
        if len(set(places)) < len(places):
            raise UserError("--arpg and --tokenizer: must be two files, neither of them the run's")
        for out, load, name in ((options.arpg, checkpoint.load_model, "model.pt"),
                                (options.tokenizer, checkpoint.load_tokenizer, "tokenizer.pt")):
            if out:
                module = load(options.run / name)[0]
                state = released(module)
                write_whole(out, lambda file: torch.save({"model": state}, file))
                more = (f"; not stored: heads {module.config.heads}, grid {module.config.grid}"
                        if out == options.arpg else "")
                print(f"{out}: {len(state)} tensors{more}")
    return exit_code(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
