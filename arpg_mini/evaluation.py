"""How good is it? Distances between sets of pictures, and what a model thinks of real ones.

The one idea: a network turns every picture into a vector; two sets of pictures are alike if their
vectors are distributed alike. With the Inception network that is FID, Inception score, precision
and recall (what papers report); with a small classifier of the data at hand it is a distance that
can be computed offline, and is never called FID.

    python -m arpg_mini.evaluation real.npz fake.npz --inception inception-2015-12-05.pt
    python -m arpg_mini.evaluation shapes fake.npz    the same by a small judge of the shapes
    python -m arpg_mini.evaluation samples.npz        shapes' class accuracy, colour coherence
    python -m arpg_mini.evaluation runs/shapes        the price of parallelism: a table over steps
    python -m arpg_mini.evaluation runs/shapes --orders      bits per token under several orders
"""

import hashlib
import math
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from . import checkpoint
from .config import Parser, UserError, complain
from .data import Ids, fashion_pictures, shapes
from .decoding import decode, named_order, random_orders
from .distributed import pick_device
from .images import to_uint8
from .judge import Classifier, load_judge, shapes_classifier, shapes_scores, tokenizer_scores
from .model import ARPG

JUDGED = ("shapes", "fashion-mnist")


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """(n, d) -> mean (d,) and covariance (d, d), divided by n - 1, both float64."""
    mean, total = features.double().mean(0), 0
    for part in features.split(10_000):
        apart = part.double() - mean
        total = total + apart.T @ apart
    return mean, total / (len(features) - 1)


def root(covariance: Tensor) -> Tensor:
    """The square root of a symmetric matrix; eigenvalues below zero are rounding, and are zero."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def frechet_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor,
                     other_covariance: Tensor) -> float:
    """|m - m'|² + tr(C + C' - 2 (C C')^½): how far apart two normal distributions are.

    The last trace is the sum of the singular values of C^½ C'^½, which needs no root of a matrix
    that is not symmetric, and stays exact where covariances are singular. Float64.
    """
    cross = torch.linalg.svdvals(root(covariance) @ root(other_covariance)).sum()
    distance = ((mean - other_mean).square().sum()
                + covariance.trace() + other_covariance.trace() - 2 * cross)
    return max(0.0, distance.item())


def inception_score(probabilities: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp(mean KL(p(class|image) ‖ p(class))): mean and standard deviation over `splits` parts.

    probabilities: (n, classes), in the order the pictures were made.
    """
    scores = []
    for part in probabilities.double().tensor_split(splits):
        each = torch.special.xlogy(part, part) - torch.special.xlogy(part, part.mean(0))
        scores.append(each.sum(1).mean().exp())
    return torch.stack(scores).mean().item(), torch.stack(scores).std(correction=0).item()


def within(features: Tensor, others: Tensor, radii: Tensor, rows: int = 1000) -> float:
    """The share of `features` (n, d) that lie in a ball around any of `others` (m, d), (m,)."""
    inside = [(torch.cdist(part, others) <= radii).any(1) for part in features.split(rows)]
    return torch.cat(inside).double().mean().item()


def precision_recall(real: Tensor, fake: Tensor, k: int = 3,
                     rows: int = 1000) -> tuple[float, float]:
    """Shares of fake pictures near real ones, and of real near fake (Kynkäänniemi et al. 2019).

    Near: no further than that one's k-th nearest neighbour in its own set.
    """
    def radii(features: Tensor) -> Tensor:
        return torch.cat([torch.cdist(part, features).kthvalue(min(k + 1, len(features)), 1).values
                          for part in features.split(rows)])
    return within(fake, real, radii(real), rows), within(real, fake, radii(fake), rows)


@contextmanager
def open_pictures(path: Path) -> Iterator[tuple]:
    """An ADM-style file's `arr_0`, uint8 (n, height, width, 3): its open entry and its shape."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as entry:
            version = np.lib.format.read_magic(entry)
            shape, fortran, dtype = (np.lib.format.read_array_header_1_0 if version == (1, 0)
                                     else np.lib.format.read_array_header_2_0)(entry)
            if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or fortran or not shape[0]:
                raise ValueError(f"arr_0 is {dtype} {shape}, not uint8 (n, height, width, 3)")
            yield entry, shape
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no .npz of pictures ({error})") from None


def pictures(path: Path, batch: int = 50) -> Iterator[np.ndarray]:
    """The pictures of a file, (batch, height, width, 3) at a time: never all in memory."""
    with open_pictures(path) as (entry, (n, *size)):
        for start in range(0, n, batch):
            rows = min(batch, n - start)
            data = entry.read(rows * int(np.prod(size)))
            if len(data) < rows * int(np.prod(size)):
                raise ValueError(f"cut off after {start} of {n} pictures")
            yield np.frombuffer(data, np.uint8).reshape(rows, *size)


@torch.no_grad()
def extract(network: Callable, batches: Iterable[np.ndarray], total: int,
            device: torch.device) -> Tensor:
    """(total, d) float32: what the network makes of uint8 pictures, a batch at a time."""
    bar, parts = tqdm(total=total, desc="features", unit="picture", leave=False), []
    for images in batches:
        inputs = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).to(device)
        parts.append(network(inputs).float().cpu())
        bar.update(len(images))
    bar.close()
    return torch.cat(parts)


def cached(path: Path, network_file: Path, compute: Callable[[], Tensor]) -> Tensor:
    """A reference file's features, kept beside it for the next time, as long as neither it nor the
    network changes."""
    stat, beside = path.stat(), path.with_name(path.name + ".features")
    network = hashlib.sha256(network_file.read_bytes()).hexdigest()
    mark = f"{stat.st_size} {stat.st_mtime_ns} {network}"
    try:
        content = checkpoint.load(beside, "features")
        if content["mark"] == mark:
            return content["features"]
    except UserError:
        pass
    features = compute()
    try:
        checkpoint.save(beside, "features", mark=mark, features=features)
    except UserError as error:
        print(f"not kept for the next time: {error}", file=sys.stderr)
    return features


def choose_network(options, device: torch.device) -> tuple[str, str, Callable, Callable | None]:
    """The distance's name, where its features come from, what computes them, and for Inception
    also what computes class probabilities."""
    if options.inception:
        try:
            network = torch.jit.load(options.inception, map_location=device).eval()
        except (RuntimeError, ValueError, OSError):
            raise UserError(f"--inception {options.inception}: no readable TorchScript") from None
        return ("FID", f"{options.inception.name}, which resizes the pictures itself",
                partial(network, return_features=True), partial(network, no_output_bias=True))
    data = str(options.what) if str(options.what) in JUDGED else options.judge
    if data not in JUDGED:
        raise UserError("two files need --inception FILE, or --judge " + " or ".join(JUDGED))
    file = Path("runs") / f"judge-{data}.pt"
    judge = load_judge(data, file).to(device)
    return f"{data} distance", f"the judge in {file}, no resizing", judge.features, None


def compare(options) -> None:
    """Print the distances between two sets of pictures, and by what protocol."""
    device, of_file, seeds = torch.device(pick_device(options.device)), "", ""
    with open_pictures(options.fake) as (_, shape):
        fake_count, *size, _ = shape
    name, source, features, probabilities = choose_network(options, device)
    if str(options.what) in JUDGED:
        images = (shapes(10_000, seed=1)[0] if str(options.what) == "shapes"
                  else fashion_pictures("t10k").images)
        if list(images.shape[1:3]) != size:
            raise UserError(f"{options.fake}: its pictures are of {size[0]}×{size[1]} pixels, "
                            f"{options.what}'s of {images.shape[1]}×{images.shape[2]}")
        real = extract(features, np.array_split(images, 100), len(images), device)
    else:
        with open_pictures(options.what) as (_, shape):
            count = shape[0]

        def compute() -> Tensor:
            return extract(features, pictures(options.what), count, device)
        real = cached(options.what, options.inception, compute) if options.inception else compute()
    fewest = min(len(real), fake_count)
    if fewest < real.shape[1] and not options.few:
        raise UserError(f"{fewest} pictures for {real.shape[1]} features: the covariance would be "
                        "singular and the distance mean little; --few computes it all the same")
    fake = extract(features, pictures(options.fake), fake_count, device)
    of_real = moments(real)
    if options.inception and options.what.is_file():
        with np.load(options.what) as file:
            if {"mu", "sigma"} <= set(file):
                of_real = tuple(torch.from_numpy(file[k]).double() for k in ("mu", "sigma"))
                of_file = "; mean and covariance as stored in the file"
        if of_real[0].shape != real.shape[1:]:
            raise UserError(f"{options.what}: its mu is of {len(of_real[0])} features, "
                            f"--inception {options.inception} of {real.shape[1]}")
    with np.load(options.fake) as file:
        if "seed" in file:
            seeds = f", seeds {file['seed']} to {file['seed'] + fake_count - 1}"
    print(f"real: {options.what}, {len(real)} pictures{of_file}")
    print(f"fake: {options.fake}, {fake_count} pictures of {size[0]}×{size[1]}{seeds}")
    print(f"features: {real.shape[1]}, of {source}")
    print(f"{name}: {frechet_distance(*of_real, *moments(fake)):.4f}")
    if probabilities:
        score, deviation = inception_score(
            extract(probabilities, pictures(options.fake), fake_count, device))
        print(f"Inception score: {score:.3f} ± {deviation:.3f} over 10 parts, in the file's order")
    precision, recall = precision_recall(real, fake)
    print(f"precision: {precision:.4f}, recall: {recall:.4f} (k = 3, all pictures)")


@torch.no_grad()
def bits_per_token(model: ARPG, ids: Ids, orders: Tensor | None, count: int = 2000,
                   seed: int = 0) -> tuple[float, float]:
    """Mean bits per token of held-out pictures and its standard error over pictures.

    orders: (N,), the same for all; None: a random one for each, from `seed` on.
    """
    count, n, device = min(count, len(ids)), ids.ids.shape[2], model.embedding.weight.device
    batch, each = max(1, 2**26 // (n * model.config.vocab_size)), []
    for start in range(0, count, batch):
        rows = slice(start, min(start + batch, count))
        tokens = torch.from_numpy(ids.ids[rows, 0].astype(np.int64)).to(device)
        order = (random_orders(range(seed + rows.start, seed + rows.stop), n) if orders is None
                 else orders.expand(len(tokens), n)).to(device)
        logits = model(tokens, torch.from_numpy(ids.labels[rows]).to(device), order)
        nats = F.cross_entropy(logits.transpose(1, 2), tokens.gather(1, order), reduction="none")
        each.append(nats.mean(1) / math.log(2))
    bits = torch.cat(each).double()
    return bits.mean().item(), (bits.std() / len(bits) ** 0.5).item()


def orders_table(run: Path, count: int) -> None:
    """Print bits per token of a run's held-out pictures under several orders."""
    model, _ = checkpoint.load_model(run / "model.pt")
    ids = Ids(run / "ids" / "val")
    print(f"{'order':>14}{'bits/token':>12}{'± standard error':>18}")
    for name in ("random", "random again", "raster", "column", "spiral", "outward",
                 "checkerboard"):
        orders = None if "random" in name else named_order(name, model.config.grid)
        bits, error = bits_per_token(model, ids, orders, count, seed=10**6 * (name[-1] == "n"))
        print(f"{name:>14}{bits:>12.4f}{error:>18.4f}")


def steps_table(run: Path, count: int, guidance: float, judge: Classifier) -> None:
    """Print class accuracy and coherence against steps, for both ways to encode a step."""
    model, saved = checkpoint.load_model(run / "model.pt")
    tokenizer, _ = checkpoint.load_tokenizer(run / "tokenizer.pt")
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
    parser.add_argument("what", type=Path, help="a run folder, an .npz of shapes, or the real "
                        "pictures of two sets: an .npz, shapes or fashion-mnist")
    parser.add_argument("fake", type=Path, nargs="?", help="an .npz of generated pictures")
    parser.add_argument("--inception", type=Path, help="TorchScript of the Inception network "
                        "(inception-2015-12-05.pt): FID, Inception score, precision, recall")
    parser.add_argument("--judge", help="what the small classifier is of: " + ", ".join(JUDGED))
    parser.add_argument("--few", action="store_true", help="fewer pictures than features are fine")
    parser.add_argument("--orders", action="store_true", help="bits per token under several orders")
    parser.add_argument("--count", type=int, help="pictures a row of a table (default 500; 2000 "
                        "for --orders)")
    parser.add_argument("--guidance", type=float, default=2.0, help="of the table (default 2)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    options = parser.parse_args()
    try:
        if options.fake:
            compare(options)
        elif options.orders:
            orders_table(options.what, options.count or 2000)
        elif options.what.is_dir():
            steps_table(options.what, options.count or 500, options.guidance, shapes_classifier())
        else:
            images = np.concatenate(list(pictures(options.what)))
            with np.load(options.what) as file:
                if "arr_1" not in file:
                    raise UserError(f"{options.what}: has no arr_1, the pictures' classes")
                labels = file["arr_1"]
            judge, (real, real_labels) = shapes_classifier(), shapes(2000, seed=1)
            made, held = (shapes_scores(*x, judge) for x in ((images, labels), (real, real_labels)))
            for name in made:
                print(f"{name}: {made[name]:.3f} on {len(images)} images, {held[name]:.3f} on "
                      f"2000 real ones, ratio {made[name] / held[name]:.3f}")
        return 0
    except UserError as error:
        return complain("arpg_mini.evaluation", error)


if __name__ == "__main__":
    sys.exit(main())
