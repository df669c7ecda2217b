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
import zlib
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
from .config import Parser, UserError, exit_code
from .data import SHAPES, fashion_pictures, shapes
from .decoding import Settings, decode, named_order, random_orders
from .distances import frechet_distance, inception_score, moments, precision_recall
from .distributed import pick_device
from .ids import Ids
from .images import to_uint8
from .judge import load_judge, shapes_classifier, shapes_scores, tokenizer_scores
from .model import ARPG

JUDGED = ("shapes", "fashion-mnist")


@contextmanager
def open_pictures(path: Path) -> Iterator[tuple]:
    """An ADM-style file's `arr_0`, uint8 (n, height, width, 3): its open entry and its shape."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as entry:
            version = np.lib.format.read_magic(entry)
            shape, fortran, dtype = (np.lib.format.read_array_header_1_0 if version == (1, 0)
                                     else np.lib.format.read_array_header_2_0)(entry)
            if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or fortran or not all(shape):
                raise ValueError(f"arr_0 is {dtype} {shape}{', by columns' * fortran}, not uint8 "
                                 "(n, height, width, 3)")
            yield entry, shape
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
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


def array(path: Path, name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """An array of numbers out of an .npz; UserError if it is not of that shape and kind."""
    try:
        with np.load(path) as file:
            found = file[name]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: its {name} can't be read ({error})") from None
    if found.shape != shape or found.dtype.kind not in kind or not np.isfinite(found).all():
        raise UserError(f"{path}: its {name} is {found.dtype} {found.shape}; it must be {shape} "
                        "finite numbers")
    return found


def cached(path: Path, network_file: Path, shape: tuple[int, int],
           compute: Callable[[], Tensor]) -> Tensor:
    """A reference file's features, kept beside it for the next time, as long as neither it nor the
    network changes."""
    beside, digest = path.with_name(path.name + ".features"), hashlib.sha256()
    for file in (path, network_file):
        with open(file, "rb") as opened:
            while block := opened.read(2**24):
                digest.update(block)
    mark = digest.hexdigest()
    try:
        content = checkpoint.load(beside, "features")
        features = content.get("features")
        if content.get("mark") == mark and getattr(features, "shape", None) == shape:
            return features
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
        features = partial(network, return_features=True)
        probabilities = partial(network, no_output_bias=True)
        try:
            probe = torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device=device)
            if features(probe).ndim != 2 or probabilities(probe).ndim != 2:
                raise RuntimeError
        except (RuntimeError, TypeError, AttributeError):
            raise UserError(f"--inception {options.inception}: is not called as the Inception "
                            "network is, with return_features or no_output_bias") from None
        return ("FID", f"{options.inception.name}, which resizes the pictures itself", features,
                probabilities)
    data = str(options.what) if str(options.what) in JUDGED else options.judge
    if data not in JUDGED:
        raise UserError("two files need --inception FILE, or --judge " + " or ".join(JUDGED))
    file = Path("runs") / f"judge-{data}.pt"
    judge = load_judge(data, file).to(device)
    return f"{data} distance", f"the judge in {file}, no resizing", judge.features, None


def compare(options, device: torch.device) -> None:
    """Print the distances between two sets of pictures, and by what protocol."""
    with open_pictures(options.fake) as (_, shape):
        fake_count, *size, _ = shape
    name, source, features, probabilities = choose_network(options, device)
    named, of_file, seeds = str(options.what) in JUDGED, "", ""
    if named:
        images = (shapes(10_000, seed=1)[0] if str(options.what) == "shapes"
                  else fashion_pictures("t10k").images)
        real_count, *real_size, _ = images.shape
    else:
        with open_pictures(options.what) as (_, shape):
            real_count, *real_size, _ = shape
    if real_size != size and not options.inception:
        raise UserError(f"{options.fake}: its pictures are of {size[0]}×{size[1]} pixels, "
                        f"{options.what}'s of {real_size[0]}×{real_size[1]}")
    with torch.no_grad():
        width = features(torch.zeros(1, 3, *size, dtype=torch.uint8, device=device)).shape[1]
    fewest = min(real_count, fake_count)
    if fewest <= width and not options.few:
        raise UserError(f"{fewest} pictures for {width} features: the covariance would be "
                        "singular and the distance mean little; --few computes it all the same")
    if fewest < 2:
        raise UserError("1 picture: there is no covariance of fewer than two")
    moments_of_file = None
    if options.inception and not named:
        with np.load(options.what) as file:
            if {"mu", "sigma"} <= set(file):
                moments_of_file = [torch.from_numpy(array(options.what, x, s, "f")).double()
                                   for x, s in (("mu", (width,)), ("sigma", (width, width)))]
                of_file = "; mean and covariance as stored in the file"

    def compute() -> Tensor:
        return extract(features, np.array_split(images, 100) if named else pictures(options.what),
                       real_count, device)
    real = (cached(options.what, options.inception, (real_count, width), compute)
            if options.inception and not named else compute())
    fake = extract(features, pictures(options.fake), fake_count, device)
    if not (real.isfinite().all() and fake.isfinite().all()):
        raise UserError(f"{source.split(',')[0]}: gives features that are no finite numbers")
    with np.load(options.fake) as file:
        if "seed" in file:
            seed = array(options.fake, "seed", (), "iu")
            seeds = f", seeds {seed} to {seed + fake_count - 1}"
    print(f"real: {options.what}, {real_count} pictures{of_file}")
    print(f"fake: {options.fake}, {fake_count} pictures of {size[0]}×{size[1]}{seeds}")
    print(f"features: {width}, of {source}")
    print(f"{name}: {frechet_distance(*moments_of_file or moments(real), *moments(fake)):.4f}")
    if probabilities:
        score, deviation = inception_score(
            extract(probabilities, pictures(options.fake), fake_count, device))
        print(f"Inception score: {score:.3f} ± {deviation:.3f} over {min(10, fake_count)} "
              "parts, in the file's order")
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
    for start in tqdm(range(0, count, batch), "bits", leave=False):
        rows = slice(start, min(start + batch, count))
        tokens = torch.from_numpy(ids.ids[rows, 0].astype(np.int64)).to(device)
        order = (random_orders(range(seed + rows.start, seed + rows.stop), n) if orders is None
                 else orders.expand(len(tokens), n)).to(device)
        logits = model(tokens, torch.from_numpy(ids.labels[rows]).to(device), order)
        nats = F.cross_entropy(logits.transpose(1, 2), tokens.gather(1, order), reduction="none")
        each.append(nats.mean(1) / math.log(2))
    bits = torch.cat(each).double()
    return bits.mean().item(), (bits.std() / len(bits) ** 0.5).item()


def orders_table(run: Path, count: int, device: torch.device) -> None:
    """Print bits per token of a run's held-out pictures under several orders."""
    model = checkpoint.load_model(run / "model.pt")[0].to(device)
    try:
        ids = Ids(run / "ids" / "val")
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{run / 'ids' / 'val'}: no readable ids ({error})") from None
    if ids.ids.max() >= model.config.vocab_size or ids.labels.max() > model.null_label:
        raise UserError(f"{run / 'ids' / 'val'}: ids or classes that {run / 'model.pt'} has not")
    print(f"{'order':>14}{'bits/token':>12}{'± standard error':>18}")
    for name in ("random", "random again", "raster", "column", "spiral", "outward",
                 "checkerboard"):
        orders = None if "random" in name else named_order(name, model.config.grid)
        bits, error = bits_per_token(model, ids, orders, count, seed=10**6 * (name[-1] == "n"))
        print(f"{name:>14}{bits:>12.4f}{error:>18.4f}")


def steps_table(run: Path, count: int, guidance: float, device: torch.device) -> None:
    """Print class accuracy and coherence against steps, for both ways to encode a step."""
    model, saved = checkpoint.load_model(run / "model.pt")
    tokenizer, _ = checkpoint.load_tokenizer(run / "tokenizer.pt")
    if saved["classes"] != list(SHAPES):
        raise UserError(f"{run}: its pictures are no shapes, which this table is about; --orders "
                        "works, and two .npz files")
    model.to(device), tokenizer.to(device)
    judge, (real, real_labels) = shapes_classifier(), shapes(2000, seed=1)
    for name, score in tokenizer_scores(tokenizer, real, real_labels, judge).items():
        print(f"tokenizer, {name}: {score:.4g}")
    print(f"{'steps':>8}{'within step':>13}{'class accuracy':>16}{'colour coherence':>18}")

    def row(steps, within, images, labels):
        accuracy, coherence = shapes_scores(images, labels, judge).values()
        print(f"{steps:>8}{within:>13}{accuracy:>16.3f}{coherence:>18.3f}")

    row("real", "", real, real_labels)
    labels, grid = np.arange(count) % 10, model.config.grid
    n = grid[0] * grid[1]
    for steps in [2**i for i in range(n.bit_length()) if 2**i < n] + [n]:
        for within in ("block", "causal"):
            images = [to_uint8(tokenizer.decode(decode(
                model, labels[i:i + 500], range(i, min(i + 500, count)), steps=steps,
                within_step=within, guidance=guidance,
                guidance_schedule=saved["guidance_schedule"]).view(-1, *grid)))
                for i in tqdm(range(0, count, 500), f"{steps} steps", leave=False)]
            row(steps, within, np.concatenate(images), labels)


def score_shapes(path: Path) -> None:
    """Print class accuracy and colour coherence of a file of drawn shapes, beside real ones'."""
    judge, (real, real_labels) = shapes_classifier(), shapes(2000, seed=1)
    with open_pictures(path) as (_, shape):
        if shape[1:] != real.shape[1:]:
            raise UserError(f"{path}: its pictures are {shape[1:]}, shapes {real.shape[1:]}")
    images, labels = np.concatenate(list(pictures(path))), array(path, "arr_1", shape[:1], "iu")
    made, held = (shapes_scores(*x, judge) for x in ((images, labels), (real, real_labels)))
    for name in made:
        print(f"{name}: {made[name]:.3f} on {len(images)} images, {held[name]:.3f} on 2000 real "
              f"ones, ratio {made[name] / held[name]:.3f}")


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

    def work() -> None:
        if options.count is not None and options.count < 2:
            raise UserError(f"--count {options.count}: must be 2 or more")
        try:
            Settings(guidance=options.guidance)
        except ValueError as error:
            raise UserError(f"--{error}") from None
        device = torch.device(pick_device(options.device))
        if options.fake:
            compare(options, device)
        elif options.orders:
            orders_table(options.what, options.count or 2000, device)
        elif options.what.is_dir():
            steps_table(options.what, options.count or 500, options.guidance, device)
        else:
            score_shapes(options.what)
    return exit_code(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
