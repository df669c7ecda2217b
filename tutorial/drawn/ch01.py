"""Chapter 1's figures, and `python -m tutorial.drawn.ch01`: the runs whose numbers it quotes."""

from dataclasses import replace

import torch

from arpg_mini import VQTokenizer
from arpg_mini.config import presets
from arpg_mini.data import shapes, shapes_pictures
from arpg_mini.training import (
    learning_rate,
    make_optimizer,
    optimizer_step,
    to_device,
    train_tokenizer,
    visits,
)

NEVER = 10**9                               # batches of patience: no row is ever revived


def trained(how: str, steps: int = 600) -> VQTokenizer:
    """The default run's tokenizer, trained in its way, without revival, or cold: quantised from
    the first step on with random rows that nobody fits or revives."""
    preset, pictures = presets()["shapes"], shapes_pictures(10_000, seed=0)
    patience = preset.train.tokenizer_patience if how == "usual" else NEVER
    config = replace(preset.train, tokenizer_steps=steps, tokenizer_patience=patience)
    torch.manual_seed(0)
    tokenizer = VQTokenizer(preset.tokenizer)
    optimizer = make_optimizer(tokenizer, 0.0, config.betas)
    if how != "cold":
        for _ in train_tokenizer(tokenizer, pictures, config, 0, optimizer):
            pass
        return tokenizer
    for step in range(steps):
        _, images = pictures.load(
            visits(0, 0, step, config.tokenizer_batch_size, len(pictures)))
        _, losses, _, _ = tokenizer(to_device(images, torch.device("cpu")))
        sum(losses.values()).backward()
        optimizer_step(optimizer, tokenizer,
                       learning_rate(step, steps, config, config.tokenizer_lr), config.grad_clip)
    return tokenizer


def measure() -> None:
    """PSNR on 500 pictures that were not trained on, and how many ids they use, how evenly."""
    images = to_device(shapes(500, seed=1)[0], torch.device("cpu"))
    for how in ("usual", "no revival", "cold"):
        tokenizer = trained(how)
        ids = tokenizer.encode(images)
        error = ((tokenizer.decode(ids) - images) / 2).square().mean()
        share = ids.flatten().bincount(minlength=48) / ids.numel()
        print(f"{how}: PSNR {-10 * error.log10():.4f} dB, {(share > 0).sum()} of 48 ids used, "
              f"perplexity {torch.special.entr(share).sum().exp():.4f}")


if __name__ == "__main__":
    measure()
