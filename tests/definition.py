"""A second ARPG, written from its formulas alone: NumPy, loops, one vector at a time.

It computes the paper's formulas, with the class slot of the released weights: its key and query are
zero. It shares only the weights' names and the sizes with the package. It takes a list of slots,
and which slot sees which. It returns the logits of one query. It is slow but simple: when the
package and this file differ, you can check this file by hand.
"""

import numpy as np

from arpg_mini import ARPG


def turn(vector: np.ndarray, place: tuple[int, int] | None, base: float) -> np.ndarray:
    """Rotary position: rotate features (2k, 2k+1) by the k-th angle. No place: the zero vector."""
    if place is None:
        return np.zeros_like(vector)
    out, half = np.empty_like(vector), len(vector) // 2
    for k in range(half):
        coordinate = place[0] if k < half // 2 else place[1]           # first the row, then column
        angle = coordinate * base ** (-2 * (k % (half // 2)) / half)
        a, b = vector[2 * k], vector[2 * k + 1]
        out[2 * k] = a * np.cos(angle) - b * np.sin(angle)
        out[2 * k + 1] = b * np.cos(angle) + a * np.sin(angle)
    return out


def norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-5) * gain


def attend(query: np.ndarray, keys: list, values: list) -> np.ndarray:
    scores = np.array([query @ key for key in keys]) / np.sqrt(len(query))
    weights = np.exp(scores - scores.max())
    return sum(w * value for w, value in zip(weights / weights.sum(), values))


def answer(model: ARPG, ids: list[int], places: list, sees: np.ndarray,
           target: tuple[int, int]) -> np.ndarray:
    """(V,) logits of the id at `target`, a (row, column), given S slots of content.

    ids: S rows of the embedding table. places: each slot's (row, column), None for the class.
    sees: (S, S), sees[a, b] is true if slot a sees slot b. The query sees all S slots.
    """
    w = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    c, slots, head_dim = model.config, range(len(ids)), model.config.head_dim
    parts = [slice(h * head_dim, (h + 1) * head_dim) for h in range(c.heads)]

    def feed_forward(x, name):
        w1, w3 = np.split(w[f"{name}.ffn.w13.weight"], 2)
        x = norm(x, w[f"{name}.ffn_norm.gain"])
        gate = w1 @ x
        return w[f"{name}.ffn.w2.weight"] @ (gate / (1 + np.exp(-gate)) * (w3 @ x))

    content = [w["embedding.weight"][i] for i in ids]
    for layer in range(c.content_layers):
        name = f"content.{layer}"
        into, gain = w[f"{name}.attention.qkv.weight"], w[f"{name}.attention_norm.gain"]
        qkv = [np.split(into @ norm(x, gain), 3) for x in content]
        for s in slots:
            seen = [r for r in slots if sees[s, r]]
            mixed = [attend(turn(qkv[s][0][part], places[s], c.rope_base),
                            [turn(qkv[r][1][part], places[r], c.rope_base) for r in seen],
                            [qkv[r][2][part] for r in seen]) for part in parts]
            content[s] = content[s] + w[f"{name}.attention.out.weight"] @ np.concatenate(mixed)
        content = [x + feed_forward(x, name) for x in content]

    kv = [np.split(w["kv.weight"] @ norm(x, w["kv_norm.gain"]), 2) for x in content]
    x = w["embedding.weight"][c.vocab_size]                            # [MASK]
    for layer in range(c.query_layers):
        name = f"query.{layer}"
        q = w[f"{name}.attention.q.weight"] @ norm(x, w[f"{name}.attention_norm.gain"])
        mixed = [attend(turn(q[part], target, c.rope_base),
                        [turn(kv[s][0][part], places[s], c.rope_base) for s in slots],
                        [kv[s][1][part] for s in slots]) for part in parts]
        x = x + w[f"{name}.attention.out.weight"] @ np.concatenate(mixed)
        x = x + feed_forward(x, name)
    return w["head.weight"] @ norm(x, w["norm.gain"])


def finished_image_logits(model: ARPG, image: list[int], label: int, grid: tuple[int, int],
                          known: list[int], order: list[int], sizes: list[int],
                          within_step: str) -> np.ndarray:
    """(U, V): the logits that each step's queries must have had while this image was decoded.

    image: N raster ids. known: positions given before the first step, ascending.
    order: the other U positions in decoding order; step s decodes sizes[s] of them. Training is
    the case of nothing known and steps of one token.
    """
    def place(position):
        return divmod(position, grid[1])

    ids = [model.config.vocab_size + 1 + label] + [image[p] for p in known]
    places = [None] + [place(p) for p in known]
    wrote, answers = [0] + [1] * len(known), []                        # each slot's step
    starts = np.cumsum([0, *sizes])
    for step, (start, end) in enumerate(zip(starts, starts[1:]), start=2):
        group, rank = np.array(wrote), np.arange(len(wrote))
        when = group if within_step == "block" else rank
        sees = when[:, None] >= when
        targets = order[start:end]
        answers += [answer(model, ids, places, sees, place(p)) for p in targets]
        ids, places = ids + [image[p] for p in targets], places + [place(p) for p in targets]
        wrote += [step] * len(targets)
    return np.array(answers).reshape(len(order), model.config.vocab_size)
