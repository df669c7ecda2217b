"""Distances between two sets of pictures, given a vector of features for each picture.

The one idea: two sets are alike if their features have the same distribution. The Fréchet distance
compares means and covariances; precision and recall compare neighbourhoods.
"""

import torch
from torch import Tensor


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """(n, d) -> mean (d,) and covariance (d, d), divided by n - 1, both float64."""
    mean, total = features.double().mean(0), 0
    for part in features.split(10_000):
        apart = part.double() - mean
        total = total + apart.T @ apart
    return mean, total / (len(features) - 1)


def root(covariance: Tensor) -> Tensor:
    """The square root of a symmetric matrix; negative eigenvalues are rounding errors, set to 0."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def frechet_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor,
                     other_covariance: Tensor) -> float:
    """|m - m'|² + tr(C + C' - 2 (C C')^½): the distance between two normal distributions, float64.

    The last trace is computed as the sum of the singular values of C^½ C'^½. So no square root of
    an asymmetric matrix is needed, and the result is exact for singular covariances.
    """
    cross = torch.linalg.svdvals(root(covariance) @ root(other_covariance)).sum()
    distance = ((mean - other_mean).square().sum()
                + covariance.trace() + other_covariance.trace() - 2 * cross)
    return distance.clamp(min=0).item()


def inception_score(probabilities: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp(mean KL(p(class|image) ‖ p(class))): mean and standard deviation over `splits` parts.

    probabilities: (n, classes), in the order in which the pictures were drawn.
    """
    scores = []
    for part in probabilities.double().tensor_split(min(splits, len(probabilities))):
        each = torch.special.xlogy(part, part) - torch.special.xlogy(part, part.mean(0))
        scores.append(each.sum(1).mean().exp())
    return torch.stack(scores).mean().item(), torch.stack(scores).std(correction=0).item()


def within(features: Tensor, others: Tensor, radii: Tensor, rows: int = 1000) -> float:
    """The share of `features` (n, d) in a ball of `radii` (m,) around one of `others` (m, d)."""
    inside = [(torch.cdist(part, others) <= radii).any(1) for part in features.split(rows)]
    return torch.cat(inside).double().mean().item()


def precision_recall(real: Tensor, fake: Tensor, k: int = 3,
                     rows: int = 1000) -> tuple[float, float]:
    """The share of fake pictures near a real one, and of real pictures near a fake one: not further
    than that one's k-th nearest neighbour in its own set (Kynkäänniemi et al. 2019)."""
    centre = real.mean(0)                            # distances between large numbers lose digits
    real, fake = real - centre, fake - centre

    def radii(features: Tensor) -> Tensor:
        return torch.cat([torch.cdist(part, features).kthvalue(min(k + 1, len(features)), 1).values
                          for part in features.split(rows)])
    return within(fake, real, radii(real), rows), within(real, fake, radii(fake), rows)
