"""How good is a model? Distances between sets of pictures, and bits per token of real pictures.

The one idea: a network turns every picture into a vector, and two sets of pictures are alike if
their vectors have the same distribution. With the Inception network this gives FID. With a small
classifier of the data it gives a distance that needs no download, and that is never called FID.
"""

import math
import sys
import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from .. import UserError
from ..config import FIXED_ORDERS
from ..data.builtin import SHAPES, fashion_pictures, shapes
from ..data.files import digest, regular
from ..data.ids import Ids
from ..data.images import array, open_pictures, pictures, to_uint8
from ..decoding import decode
from ..model import ARPG
from ..orders import named_order, random_orders
from ..run import checkpoint
from ..run.command import DEVICE, Parser, exit_code, number
from ..run.drawing import check_settings
from ..run.processes import pick_device
from .distances import frechet_distance, inception_score, moments, precision_recall
from .judge import load_judge, shapes_classifier, shapes_scores, tokenizer_scores

JUDGED = ("shapes", "fashion-mnist")


@torch.no_grad()
def extract(network: Callable, batches: Iterable[np.ndarray], total: int,
            device: torch.device) -> Tensor:
    """(total, d) float32: the network's outputs for uint8 pictures, one batch at a time."""
    parts = []
    with tqdm(total=total, desc="features", unit="picture", leave=False) as bar:
        for images in batches:
            inputs = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).to(device)
            parts.append(network(inputs).float().cpu())
            bar.update(len(images))
    return torch.cat(parts)


def cached(path: Path, network_file: Path, shape: tuple[int, int],
           compute: Callable[[], Tensor]) -> Tensor:
    """A reference file's features. They are stored next to it for the next time, and used while
    neither the file nor the network changes."""
    beside, mark = path.with_name(path.name + ".features"), digest(path) + digest(network_file)
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
        print(f"the features were not stored for the next time: {error}", file=sys.stderr)
    return features


def choose_network(options, device: torch.device) -> tuple[str, str, Callable, Callable | None]:
    """The distance's name, a description of its features, the function that computes them, and for
    Inception the function that computes class probabilities."""
    if options.inception:
        try:
            with zipfile.ZipFile(regular(options.inception)) as archive:
                if sum(e.file_size for e in archive.infolist()) > 2**28:
                    raise ValueError("it unpacks to more than 256 MB")
            network = torch.jit.load(options.inception, map_location=device).eval()
        except Exception:                       # a damaged archive may raise anything
            raise UserError(f"--inception {options.inception}: no readable TorchScript") from None
        features = partial(network, return_features=True)
        probabilities = partial(network, no_output_bias=True)
        try:
            probe = torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device=device)
            if features(probe).ndim != 2 or probabilities(probe).ndim != 2:
                raise RuntimeError
        except (RuntimeError, TypeError, AttributeError):
            raise UserError(f"--inception {options.inception}: can't be called as the "
                            "Inception network, with return_features or no_output_bias") from None
        return ("FID", f"{options.inception.name}, which resizes the pictures itself", features,
                probabilities)
    data = str(options.what) if str(options.what) in JUDGED else options.judge
    if data not in JUDGED:
        raise UserError("two files need --inception FILE, or --judge " + " or ".join(JUDGED))
    file = Path("runs") / f"judge-{data}.pt"
    judge = load_judge(data, file).to(device)
    return f"{data} distance", f"the judge in {file}, no resizing", judge.features, None


def compare(options, device: torch.device) -> None:
    """Print the distances between two sets of pictures, and how they were computed."""
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
        raise UserError(f"{options.fake}: its pictures have {size[0]}×{size[1]} pixels, "
                        f"those of {options.what} {real_size[0]}×{real_size[1]}")
    with torch.no_grad():
        width = features(torch.zeros(1, 3, *size, dtype=torch.uint8, device=device)).shape[1]
    fewest = min(real_count, fake_count)
    if fewest <= width and not options.few:
        raise UserError(f"{fewest} pictures for {width} features: the covariance would be "
                        "singular and the distance meaningless; --few computes it anyway")
    if fewest < 2:
        raise UserError("1 picture: a covariance needs at least two")
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
        raise UserError(f"{source.split(',')[0]}: gives features that are not finite numbers")
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
    """Mean bits per token of held-out pictures, and its standard error over pictures.

    orders: (N,), the same for all pictures; None: a random one for each, from `seed` on.
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
    grid = model.config.grid
    try:
        ids = Ids(run / "ids" / "val")
    except (OSError, ValueError) as error:
        raise UserError(f"{run / 'ids' / 'val'}: no readable ids ({error})") from None
    if (ids.ids.max() >= model.config.vocab_size or ids.labels.min() < 0
            or ids.labels.max() > model.null_label or ids.ids.shape[2] != math.prod(grid)):
        raise UserError(f"{run / 'ids' / 'val'}: has ids or classes that {run / 'model.pt'} lacks")
    print(f"{'order':>14}{'bits/token':>12}{'± standard error':>18}")
    for name in ("random", "random again", *FIXED_ORDERS):
        orders = None if "random" in name else named_order(name, grid)
        bits, error = bits_per_token(model, ids, orders, count, seed=10**6 * (name[-1] == "n"))
        print(f"{name:>14}{bits:>12.4f}{error:>18.4f}")


def steps_table(run: Path, count: int, guidance: float, device: torch.device) -> None:
    """Print class accuracy and coherence for several numbers of steps, for block and causal."""
    model, saved = checkpoint.load_model(run / "model.pt")
    tokenizer, _ = checkpoint.load_tokenizer(run / "tokenizer.pt")
    if saved.get("classes") != list(SHAPES):
        raise UserError(f"{run}: its pictures are not shapes, so it has no such table; use "
                        "--orders or two .npz files")
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
    """Print class accuracy and colour coherence of a file of drawn shapes and of real ones."""
    judge, (real, real_labels) = shapes_classifier(), shapes(2000, seed=1)
    with open_pictures(path) as (_, shape):
        if shape[1:] != real.shape[1:]:
            raise UserError(f"{path}: its pictures are {shape[1:]}, those of shapes "
                            f"{real.shape[1:]}")
    images, labels = np.concatenate(list(pictures(path))), array(path, "arr_1", shape[:1], "iu")
    made, held = (shapes_scores(*x, judge) for x in ((images, labels), (real, real_labels)))
    for name in made:
        print(f"{name}: {made[name]:.3f} on {len(images)} images, {held[name]:.3f} on 2000 real "
              f"ones, ratio {made[name] / held[name]:.3f}")


FLAGS = {"options": [
    ("--inception", Path, "TorchScript of the Inception network (inception-2015-12-05.pt): FID, "
     "Inception score, precision, recall"),
    ("--judge", str, "data of the small classifier: " + ", ".join(JUDGED)),
    ("--few", bool, "allow fewer pictures than features"),
    ("--orders", bool, "bits per token under several orders"),
    ("--count", number(int, 2), "pictures per row of a table (default 500; 2000 for --orders)"),
    ("--guidance", float, "of the table (default 2)", 2.0), DEVICE]}


def main() -> int:
    parser = Parser("python -m arpg_mini.measure.evaluation", description=__doc__.split("\n")[0])
    parser.add_argument("what", type=Path, help="a run folder, an .npz of shapes, or the real "
                        "pictures to compare with: an .npz, shapes or fashion-mnist")
    parser.add_argument("fake", type=Path, nargs="?", help="an .npz of generated pictures")
    parser.add_flags(FLAGS)
    options = parser.parse_args()

    def work() -> None:
        check_settings(guidance=options.guidance)
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
