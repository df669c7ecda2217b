"""Exercises of chapter 4, learning all orders at once. The text is `tutorial/04_training.md`.

    python -m pytest tutorial/exercises/test_ch04.py
"""

from torch import Tensor


def training_batch(tokens: Tensor, labels: Tensor, orders: Tensor, drop: Tensor, vocab_size: int,
                   num_classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make the inputs and the targets for one batch of teacher forcing.

    tokens: (B, N) ids in raster order. labels: (B,) classes. orders: (B, N), for each sample a
    permutation of the raster positions: position orders[b, t] is generated t-th. drop: (B,) bool,
    True where the class is dropped. Rows of the embedding table: ids 0 to V - 1, [MASK] = V,
    class y = V + 1 + y, "no class" = V + C + 1 (V is vocab_size, C is num_classes).

    Returns four (B, N) tensors of integers:
      content_ids     rows of the embedding table: the class slot, then the tokens in their order
      content_places  raster positions of these slots; the place of the class slot is N
      targets         the ids that the queries must predict
      target_places   the raster positions that the queries ask about

    Example, V = 10, C = 3, one sample:
      tokens [[5, 3, 8]], labels [2], orders [[1, 2, 0]], drop [False]
      content_ids    [[13, 3, 8]]    content_places [[3, 1, 2]]
      targets        [[3, 8, 5]]     target_places  [[1, 2, 0]]
    With drop [True] content_ids is [[14, 3, 8]]; the rest is the same.

    Minutes: 20
    """
    raise NotImplementedError("training_batch: put class and tokens into slots, in their order")


def chunked_loss(hidden: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Tensor:
    """Mean cross entropy of the logits hidden @ weight.T, computed `rows` rows at a time.

    hidden: (R, D) floats. weight: (V, D). targets: (R,) ids below V. rows: 1 or more; R need not be
    a multiple of rows. Returns a tensor of shape (). Its value and its gradients equal those of the
    loss of all rows at once. Create no tensor with more than rows * V numbers.

    Example: hidden [[1.], [1.], [-3.]], weight [[0.], [1.]], targets [1, 0, 1], rows 2
      the logits are [0, 1], [0, 1], [0, -3]; the losses of the rows are 0.3133, 1.3133, 3.0486
      chunked_loss(...) = (0.3133 + 1.3133 + 3.0486) / 3 = 1.5584

    Minutes: 20
    """
    raise NotImplementedError("chunked_loss: add up the chunks' losses and divide once")


def check_no_peeking(implementation) -> None:
    """Assert that query t depends on no token at or after t of its order.

    implementation(tokens, labels, orders) -> logits, a teacher-forcing model of fixed sizes:
    tokens (B, 6) of ids 0 to 6 in raster order (a grid of 2 x 3), labels (B,) of classes 0 to 2,
    orders (B, 6) of permutations; logits (B, 6, 7) in float64. logits[:, t] predicts the token at
    orders[:, t]. You choose B. There is no dropout: equal arguments give equal logits, up to
    1e-12.

    Return nothing if the model does not peek; otherwise fail an assert. Also notice peeks that are
    small (1e-6), and peeks that happen only under some orders, at some queries or at some tokens.
    Accept every model that does not peek, even if it ignores some or all of the tokens that it may
    see.

    Example: with tokens = [[0, 1, 2, 3, 4, 5]], orders = [[4, 2, 0, 5, 1, 3]] and t = 2, you may
    change the ids at positions 0, 5, 1 and 3 to anything: logits[:, 0], logits[:, 1] and
    logits[:, 2] must stay the same.

    Minutes: 60
    """
    raise NotImplementedError("check_no_peeking: change tokens that must not matter, and compare")


def average_step(average: list[Tensor], weights: list[Tensor], decay: float, step: int) -> None:
    """One update, in place, of the running average of a model's weights.

    average <- d * average + (1 - d) * weights, with d = min(decay, (1 + step) / (10 + step)).
    average: tensors to change. weights: as many tensors, of the same shapes. They may require
    gradients, and they must not change. step: 0, 1, 2, … Returns None.

    Example: average [[10., 20.]], weights [[0., 40.]], decay 0.99
      step 0: d = 0.1, so average becomes [[1., 38.]]
      step 8, from the same average: d = 0.5, so it becomes [[5., 30.]]

    Minutes: 10
    """
    raise NotImplementedError("average_step: move each average towards its weight, in place")
