"""Draw images from a trained run, or from the authors' weights; edit pictures with them.

python sample_mini.py runs/shapes --classes 3,7 --count 16 --steps 16 --guidance 3 --out samples.png
python sample_mini.py runs/shapes --npz samples.npz --count 50000
python sample_mini.py --released arpg_300m.pt --tokenizer vq_ds16_c2i.pt --classes 207,360
python sample_mini.py RUN --inpaint photo.png --box 10,10,60,60 --count 3
"""

import sys

from arpg_mini.run.command import exit_code
from arpg_mini.run.request import check, parse


def work(options, device) -> None:
    """The whole job, in each of its processes."""
    from arpg_mini.run.drawing import draw, load
    from arpg_mini.run.retouch import edit
    drawer = load(options, device)                        # model, tokenizer, settings
    if options.job:
        edit(drawer, options, device)                     # --inpaint, --edit, --outpaint
    else:
        draw(drawer, options, device)                     # grids of pictures, GIF, .npz


def main() -> int:
    options = parse()

    def start() -> int | None:
        check(options)
        from arpg_mini.run.processes import launch, pick_device
        device = pick_device(options.device, options.gpus)
        return launch(work, options.gpus, device, options)

    return exit_code("sample_mini.py", start)


if __name__ == "__main__":
    sys.exit(main())
