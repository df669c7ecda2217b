"""Train ARPG: pictures in, a tokenizer, ids, a model, and a sheet of samples out.

    python train_mini.py                              built-in shapes, minutes on two CPU cores
    python train_mini.py --data fashion-mnist
    python train_mini.py --data FOLDER                class folders of pictures
    python train_mini.py --resume --out runs/shapes   continue an interrupted run
    python train_mini.py --preset arpg-l --plan --gpus 8    what a run needs, without training
"""

import os
import sys

from arpg_mini.run.command import exit_code
from arpg_mini.run.describe import describe_run, parse


def work(run: dict, options, device) -> None:
    """The whole run, in each of its processes."""
    from arpg_mini.run.prepare import prepare
    from arpg_mini.run.processes import Stop
    from arpg_mini.run.train import finish, train
    stop = Stop()                                         # remembers Ctrl-C until a step is over
    ready = prepare(run, options, stop, device)           # pictures -> tokenizer -> ids
    model = train(run, options, ready, stop, device)      # ids -> weights, their running average
    finish(run, options.out, ready, model)                # validation loss, samples.png


def main() -> int:
    options = parse()

    def start() -> int | None:
        run = describe_run(options)                       # a preset, changed by the flags
        if options.plan:
            from arpg_mini.run.plan import describe
            return print(describe(run, options))
        if options.deterministic:                         # CUDA reads this when it starts
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        from arpg_mini.run.processes import launch, pick_device
        device = pick_device(options.device, options.gpus)
        return launch(work, options.gpus, device, run, options)

    return exit_code("train_mini.py", start)


if __name__ == "__main__":
    sys.exit(main())
