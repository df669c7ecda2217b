"""Judges that need no download: exact scores of shapes, and a small classifier.

The one idea: the built-in pictures have known classes and colours. So a small classifier can read
the class of a generated picture, and a count of palette pixels its colour.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from .. import UserError
from ..data.builtin import COLOURS, GROUNDS, fashion_pictures, shapes
from ..data.images import to_uint8
from ..run import checkpoint
from ..tokenizer import to_device


def palette_counts(images: np.ndarray, tolerance: float = 60.0) -> np.ndarray:
    """Pixels near each palette entry: (n, height, width, 3) uint8 -> (n, colours + grounds). Near
    means a Euclidean distance (in 0..255) below `tolerance`. Two entries are at least twice as far
    apart, so no pixel counts twice. Blended pixels at edges do not count."""
    palette, counts = np.concatenate([COLOURS, GROUNDS]), []
    for image in images:
        apart = np.linalg.norm(image.reshape(-1, 1, 3).astype(np.float32) - palette, axis=-1)
        counts.append((apart < tolerance).sum(axis=0))
    return np.array(counts).reshape(len(images), len(palette))


def colour_coherence(images: np.ndarray) -> np.ndarray:
    """(n,) bool: is the foreground one palette colour, on one ground?

    True if at least half of all pixels are near the palette, at least 8 pixels have a colour, 90 %
    of those have the same colour, and 95 % of the ground's pixels have the same ground.
    """
    counts = palette_counts(images)
    clear = counts.sum(1) >= 0.5 * images.shape[1] * images.shape[2]
    colours, grounds = counts[:, :len(COLOURS)], counts[:, len(COLOURS):]
    one_colour = (colours.sum(1) >= 8) & (colours.max(1) >= 0.9 * colours.sum(1))
    return clear & one_colour & (grounds.max(1) >= 0.95 * grounds.sum(1))


def dominant_colour(images: np.ndarray) -> np.ndarray:
    """(n,) index of the palette colour with the most pixels."""
    return palette_counts(images)[:, :len(COLOURS)].argmax(axis=1)


class Classifier(nn.Sequential):
    """A small convolutional classifier: (n, 3, side, side) in [-1, 1] -> (n, classes) logits."""

    def __init__(self, classes: int):
        super().__init__(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(),
                         nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
                         nn.Conv2d(64, 128, 3, 1, 1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))

    @torch.no_grad()
    def predict(self, images: np.ndarray) -> np.ndarray:
        """(n, side, side, 3) uint8 -> (n,) classes."""
        device = next(self.parameters()).device
        return np.concatenate([self(to_device(images[i:i + 500], device)).argmax(1).cpu().numpy()
                               for i in range(0, len(images), 500)])

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(n, 3, side, side) uint8 -> (n, 128): the inputs of the last layer."""
        x = images.float() / 127.5 - 1
        for layer in list(self)[:-1]:
            x = layer(x)
        return x


def train_classifier(images: np.ndarray, labels: np.ndarray, steps: int = 600, seed: int = 0,
                     blemish: float = 0.1, cell: int = 4) -> Classifier:
    """Train a classifier on the data's own pictures; about ten seconds on two CPU cores.

    In each training picture, every cell of `cell` pixels per side is replaced by another picture's
    with probability `blemish`. Without this, the judge reads a square with a dent as anything.
    """
    torch.manual_seed(seed)
    rng, side = np.random.default_rng(seed), images.shape[1]
    model = Classifier(int(labels.max()) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in tqdm(range(steps), "classifier", leave=False):
        rows, others = rng.integers(len(labels), size=(2, 128))
        cells = rng.random((128, -(-side // cell), -(-side // cell))) < blemish
        swapped = cells.repeat(cell, axis=1).repeat(cell, axis=2)[:, :side, :side, None]
        batch = to_device(np.where(swapped, images[others], images[rows]), torch.device("cpu"))
        loss = F.cross_entropy(model(batch), torch.from_numpy(labels[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def shapes_classifier() -> Classifier:
    """The judge of shapes, trained on pictures of a seed that no run trains on."""
    return train_classifier(*shapes(8000, seed=1_000_003))


def load_judge(name: str, path: Path) -> Classifier:
    """The judge of "shapes" or "fashion-mnist" in a file; trained and saved if there is none."""
    if path.exists():
        judge = Classifier(10)
        checkpoint.fill(judge, checkpoint.load(path, f"judge of {name}").get("judge", {}), path)
        return judge.eval()
    if name == "shapes":
        judge = shapes_classifier()
    else:
        pictures = fashion_pictures("train")
        judge = train_classifier(pictures.images, pictures.labels, steps=1500)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(path, f"judge of {name}", judge=judge.state_dict())
    except (UserError, OSError) as error:
        print(f"the judge was not stored for the next time: {error}", file=sys.stderr)
    return judge


def shapes_scores(images: np.ndarray, labels: np.ndarray, judge: Classifier) -> dict[str, float]:
    """Shares in [0, 1]: class accuracy and colour coherence of pictures drawn as `labels`."""
    return {"class accuracy": float((judge.predict(images) == labels).mean()),
            "colour coherence": float(colour_coherence(images).mean())}


def psnr(images: Tensor, others: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of (n, 3, height, width) pictures in [-1, 1]."""
    error = (images - others).square().flatten(1).mean(1).clamp(min=1e-10)
    return float((10 * torch.log10(4 / error)).mean())


def tokenizer_scores(tokenizer, images: np.ndarray, labels: np.ndarray,
                     judge: Classifier) -> dict[str, float]:
    """On held-out shapes: the share of the codebook in use, the PSNR in dB, and how often class and
    colour are still right after encoding and decoding."""
    inputs = to_device(images, next(tokenizer.parameters()).device)
    ids = torch.cat([tokenizer.encode(batch) for batch in inputs.split(250)])
    outputs = torch.cat([tokenizer.decode(batch) for batch in ids.split(250)])
    again = to_uint8(outputs)
    return {"codebook in use": len(ids.unique()) / tokenizer.config.codebook_size,
            "PSNR": psnr(inputs, outputs),
            "class still read": float((judge.predict(again) == labels).mean()),
            "colour still read": float((dominant_colour(again) == dominant_colour(images)).mean())}
