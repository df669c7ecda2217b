"""How good is it? For the shapes: exact scores that can be computed offline.

The one idea: the built-in pictures are drawn from known classes and colours, so a small classifier
can read the one and a count of palette pixels the other, on generated pictures as on real ones.

    python -m arpg_mini.evaluation samples.npz        scores of a file that sample_mini.py made
    python -m arpg_mini.evaluation runs/shapes        the price of parallelism: a table over steps
"""

import sys
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from .config import Parser, UserError, complain
from .data import COLOURS, GROUNDS, shapes
from .training import to_device


def palette_counts(images: np.ndarray, tolerance: float = 60.0) -> np.ndarray:
    """Pixels near each palette entry: (n, height, width, 3) uint8 -> (n, colours + grounds).

    Near is within `tolerance` (Euclidean, of 0..255). Any two entries are further apart than twice
    that, so no pixel counts twice; blends at edges count nowhere.
    """
    palette, counts = np.concatenate([COLOURS, GROUNDS]), []
    for image in images:
        apart = np.linalg.norm(image.reshape(-1, 1, 3).astype(np.float32) - palette, axis=-1)
        counts.append((apart < tolerance).sum(axis=0))
    return np.array(counts).reshape(len(images), len(palette))


def colour_coherence(images: np.ndarray) -> np.ndarray:
    """(n,) bool: is the foreground one palette colour, on one ground?

    True if half of all pixels are near the palette and at least 8 of them are of a colour, 90 % of
    those of the same one, and 95 % of the ground's pixels of the same ground.
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


def train_classifier(images: np.ndarray, labels: np.ndarray, steps: int = 600, seed: int = 0,
                     blemish: float = 0.1, cell: int = 4) -> Classifier:
    """A classifier of the data's own pictures; about ten seconds on two CPU cores.

    In each training picture every cell of `cell` pixels a side comes from another picture with odds
    `blemish`: a judge that never saw a blemish calls a square with a dent whatever it likes.
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
    """The judge of shapes: trained on pictures of a seed that no run trains on."""
    return train_classifier(*shapes(8000, seed=1_000_003))


def shapes_scores(images: np.ndarray, labels: np.ndarray, judge: Classifier) -> dict[str, float]:
    """Shares in [0, 1]: class accuracy and colour coherence of pictures asked for as `labels`."""
    return {"class accuracy": float((judge.predict(images) == labels).mean()),
            "colour coherence": float(colour_coherence(images).mean())}


def psnr(images: Tensor, others: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of (n, 3, height, width) pictures in [-1, 1]."""
    error = (images - others).square().flatten(1).mean(1).clamp(min=1e-10)
    return float((10 * torch.log10(4 / error)).mean())


def tokenizer_scores(tokenizer, images: np.ndarray, labels: np.ndarray,
                     judge: Classifier) -> dict[str, float]:
    """On held-out shapes: the share of the codebook in use, PSNR in dB, and how often class and
    colour are still read right after encoding and decoding."""
    from .images import to_uint8
    inputs = to_device(images, next(tokenizer.parameters()).device)
    ids = torch.cat([tokenizer.encode(batch) for batch in inputs.split(250)])
    outputs = torch.cat([tokenizer.decode(batch) for batch in ids.split(250)])
    again = to_uint8(outputs)
    return {"codebook in use": len(ids.unique()) / tokenizer.config.codebook_size,
            "PSNR": psnr(inputs, outputs),
            "class still read": float((judge.predict(again) == labels).mean()),
            "colour still read": float((dominant_colour(again) == dominant_colour(images)).mean())}


def steps_table(run: Path, count: int, guidance: float, judge: Classifier) -> None:
    """Print class accuracy and coherence against steps, for both ways to encode a step."""
    from .checkpoint import load_model, load_tokenizer
    from .decoding import decode
    from .images import to_uint8
    model, saved = load_model(run / "model.pt")
    tokenizer, _ = load_tokenizer(run / "tokenizer.pt")
    real, real_labels = shapes(2000, seed=1)
    for name, score in tokenizer_scores(tokenizer, real, real_labels, judge).items():
        print(f"tokenizer, {name}: {score:.4g}")
    print(f"{'steps':>8}{'within step':>13}{'class accuracy':>16}{'colour coherence':>18}")

    def row(steps, within, images, labels):
        accuracy, coherence = shapes_scores(images, labels, judge).values()
        print(f"{steps:>8}{within:>13}{accuracy:>16.3f}{coherence:>18.3f}")

    row("real", "", real, real_labels)
    labels, n = np.arange(count) % 10, model.config.grid[0] * model.config.grid[1]
    for steps in [2**i for i in range(n.bit_length()) if 2**i < n] + [n]:
        for within in ("block", "causal"):
            ids = decode(model, labels, range(count), steps=steps, within_step=within,
                         guidance=guidance, guidance_schedule=saved["guidance_schedule"])
            images = tokenizer.decode(ids.view(-1, *model.config.grid))
            row(steps, within, to_uint8(images), labels)


def main() -> int:
    parser = Parser("python -m arpg_mini.evaluation", description=__doc__.split("\n")[0])
    parser.add_argument("what", type=Path, help="an .npz of shapes, or a run folder")
    parser.add_argument("--count", type=int, default=500, help="images a row (default 500)")
    parser.add_argument("--guidance", type=float, default=2.0, help="of the table (default 2)")
    options = parser.parse_args()
    try:
        if options.what.is_dir():
            steps_table(options.what, options.count, options.guidance, shapes_classifier())
            return 0
        try:
            with np.load(options.what) as file:
                images, labels = file["arr_0"], file["arr_1"]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise UserError(f"{options.what}: no .npz with arr_0 and arr_1 ({error})") from None
        judge, (real, real_labels) = shapes_classifier(), shapes(2000, seed=1)
        made, held = shapes_scores(images, labels, judge), shapes_scores(real, real_labels, judge)
        for name in made:
            print(f"{name}: {made[name]:.3f} on {len(images)} images, {held[name]:.3f} on 2000 "
                  f"real ones, ratio {made[name] / held[name]:.3f}")
        return 0
    except UserError as error:
        return complain("arpg_mini.evaluation", error)


if __name__ == "__main__":
    sys.exit(main())
