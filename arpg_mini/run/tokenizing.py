"""The loop that trains a tokenizer: a generator that yields after every step."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..config import TrainConfig
from ..tokenizer import VQTokenizer, to_device
from ..training import CODES, PICTURES, generator, learning_rate, optimizer_step, visits


def train_tokenizer(tokenizer: VQTokenizer, pictures, config: TrainConfig, seed: int,
                    optimizer: torch.optim.Optimizer,
                    start: int = 0) -> Iterator[dict[str, Tensor]]:
    """Yield the losses after each step from `start` to the last.

    pictures: a source of `arpg_mini.data`. The first quarter of the steps trains a plain
    autoencoder. Then the codebook is fitted to its features and used. Unused rows are revived until
    four fifths of the steps are done.
    """
    device = next(tokenizer.parameters()).device
    steps, warm = config.tokenizer_steps, config.tokenizer_steps // 4
    tokenizer.train()
    for step in range(start, steps):
        codes = torch.Generator().manual_seed(int(generator(seed, CODES, step).integers(2**62)))
        _, images = pictures.load(
            visits(seed, PICTURES, step, config.tokenizer_batch_size, len(pictures)))
        if step == warm:
            _, sample = pictures.load(
                generator(seed, PICTURES, 2**32).integers(len(pictures), size=1000))
            with torch.no_grad():
                features = torch.cat([
                    tokenizer.features(to_device(sample[i:i + 50], device)).flatten(0, 2)
                    for i in range(0, len(sample), 50)])
            tokenizer.codebook.fit(features, codes)
        _, losses, features, ids = tokenizer(to_device(images, device), quantize=step >= warm)
        used = losses if step >= warm else {"reconstruction": losses["reconstruction"]}
        sum(used.values()).backward()
        optimizer_step(optimizer, tokenizer,
                       learning_rate(step, steps, config, config.tokenizer_lr), config.grad_clip)
        if warm <= step < 0.8 * steps:
            tokenizer.codebook.revive(features, ids, config.tokenizer_patience, codes)
        yield losses
