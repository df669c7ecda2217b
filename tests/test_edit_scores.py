"""The editing scores equal their slow definitions, and are right where they are known.

Fakes replace the editing functions. They return pictures that were drawn before, and remember what
they were asked for. So a score is known from the pictures, and every argument is compared.
"""

import sys
import tempfile
from argparse import Namespace
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from arpg_mini import ARPG, ModelConfig, VQTokenizer
from arpg_mini.control import edges
from arpg_mini.data import shapes
from arpg_mini.data.builtin import COLOURS, GROUNDS, SHAPES
from arpg_mini.measure import edit_scores
from arpg_mini.measure.judge import shapes_scores
from arpg_mini.run import checkpoint
from arpg_mini.run.presets import presets
from arpg_mini.tokenizer import to_device
from tests.helpers import code_of
from tests.strategies import for_all
from tests.test_evaluation import coherent_by_hand, paintings, palette_by_hand, told

CPU = torch.device("cpu")


def flat(colour, ground, share=0.5):
    """(1, 24, 24, 3): the left `share` has one colour, the rest is the ground."""
    picture = np.full((1, 24, 24, 3), GROUNDS[ground], np.uint8)
    picture[:, :, :int(24 * share)] = COLOURS[colour]
    return picture


def test_colours_and_grounds_are_read_if_they_are_large_enough():
    pictures = np.concatenate([flat(2, 0), flat(5, 1), flat(1, 1, share=0)])
    assert edit_scores.shown_colour(pictures).tolist() == [2, 5, -1]
    assert edit_scores.ground(pictures).tolist() == [False, True, True]
    assert edit_scores.shown_colour(flat(2, 0)[:, :1, :7]).tolist() == [-1]     # seven pixels


def shown_by_hand(image: np.ndarray, least: int = 8) -> int:
    """The colour with the most pixels; -1 if these are fewer than `least`."""
    counts = palette_by_hand(image)[:6]
    return counts.index(max(counts)) if max(counts) >= least else -1


def light_by_hand(image: np.ndarray) -> bool:
    dark, light = palette_by_hand(image)[6:]
    return light > dark


@for_all(50, picture=paintings)
def test_shown_colours_and_grounds_are_their_definition(picture):
    """Broken if the least number of pixels is another, or the grounds are swapped."""
    got, right = edit_scores.shown_colour(picture[None])[0], shown_by_hand(picture)
    assert got == right, f"counts {palette_by_hand(picture)}: colour {got}, not {right}"
    got, right = edit_scores.ground(picture[None])[0], light_by_hand(picture)
    assert got == right, f"counts {palette_by_hand(picture)}: light {got}, not {right}"


def iou_by_hand(images, others, threshold: float = 0.2) -> float:
    each = []
    for pair in zip(*(edges(x)[:, 0].tolist() for x in (images, others))):
        a, b = ({(y, x) for y, row in enumerate(picture) for x, slope in enumerate(row)
                 if slope > threshold} for picture in pair)
        each.append(len(a & b) / max(1, len(a | b)))
    return sum(each) / len(each)


@for_all(25, n=st.integers(1, 3), h=st.integers(1, 4), w=st.integers(1, 5), seed=st.integers(0, 99),
         threshold=st.sampled_from([None, 0.1, 0.4]))
def test_the_outlines_overlap_is_its_definition(n, h, w, seed, threshold):
    """The mean over pictures of common edge pixels to edge pixels of either. Without any, 0."""
    g = torch.Generator().manual_seed(seed)
    images, others = ((torch.rand(n, 3, h, w, generator=g) * 2 - 1)
                      * torch.rand(n, 1, 1, 1, generator=g) for _ in range(2))
    others = torch.where(torch.rand(n, 1, h, w, generator=g) < 0.5, images, others)
    how = {} if threshold is None else {"threshold": threshold}
    got, right = edit_scores.outline_iou(images, others, **how), iou_by_hand(images, others, **how)
    assert got == pytest.approx(right), f"{got:.4f}, by definition {right:.4f}"


class Editors:
    """Fakes of the editing functions. `made[what]` are the pictures that they give, by seed."""

    def __init__(self, scorer, made: dict):
        self.scorer, self.made, self.asked = scorer, made, []

    def give(self, what, seeds, **asked) -> torch.Tensor:
        asked = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in asked.items()}
        self.asked.append((what, list(seeds), asked))
        return to_device(self.made[what][list(seeds)], CPU)

    def inpaint(self, model, tokenizer, images, mask, labels, seeds, **how):
        return self.give("inpaint", seeds, images=images, mask=mask, labels=labels, **how)

    def edit_class(self, model, tokenizer, images, mask, labels, seeds, old=None, **how):
        return self.give(f"edit {int((~mask).sum())}", seeds, images=images, mask=mask, old=old,
                         labels=labels, **how)

    def outpaint(self, model, tokenizer, images, grid, at, labels, seeds, **how):
        return self.give("outpaint", seeds, images=images, grid=grid, at=at, labels=labels, **how)

    def expand(self, model, tokenizer, labels, seeds, grid, **how):
        name = " ".join(map(str, (*grid, how.get("positions", "")))).strip()
        return self.give(name, seeds, labels=labels, grid=grid, **how)

    def decode(self, model, labels, seeds, control, **how):
        name = "free" if control is None else "told"
        self.give(name, seeds, labels=labels, control=control, **how)
        ids = torch.tensor(list(seeds)) * 2 + (control is not None)
        return ids[:, None].expand(-1, 36)

    def pixels(self, ids):                       # of the tokenizer
        assert ids.shape[1:] == (6, 6), f"ids of shape {tuple(ids.shape)}"
        seeds, told = (ids[:, 0, 0] // 2).tolist(), bool(ids[0, 0, 0] % 2)
        return to_device(self.made["told" if told else "free"][seeds], CPU)

    @contextmanager
    def working(self):
        with ExitStack() as stack:
            for name in ("inpaint", "edit_class", "outpaint", "expand", "decode"):
                stack.enter_context(patch.object(edit_scores, name, getattr(self, name)))
            yield self


class SumJudge:
    """Reads a class out of the sum of a picture's pixels."""

    def predict(self, images: np.ndarray) -> np.ndarray:
        return images.sum((1, 2, 3), dtype=int) % 4


def edited(sizes: dict[str, tuple[int, int]], count: int, seed: int, kept: int = 0) -> tuple:
    """A scorer of `count` shapes, the first without colour on its left, and its editors, who give
    pictures of `sizes` times the usual one. Half of them have the right colours, but not in their
    first `kept` columns."""
    s = edit_scores.Scorer.__new__(edit_scores.Scorer)
    s.pictures, s.labels = shapes(count, seed=seed)
    s.pictures[0, :, :12] = GROUNDS[0]
    s.labels = s.labels % 4
    s.images, s.side, s.count, s.device, s.none = to_device(s.pictures, CPU), 24, count, CPU, 10
    s.model, s.of_shapes, s.examples = Namespace(config=Namespace(grid=(6, 6))), True, []
    s.settings = dict(steps=5, guidance=2.5, guidance_schedule="constant")
    made = {}
    for number, (name, (down, right)) in enumerate(sizes.items(), 1):
        parts = shapes(count * down * right, seed=seed + number)[0]
        whole = parts.reshape(count, down, right, 24, 24, 3).transpose(0, 1, 3, 2, 4, 5)
        made[name] = whole.reshape(count, down * 24, right * 24, 3).copy()
        for i in range(0, count, 2):
            made[name][i, :, kept:] = np.tile(s.pictures[i], (down, right, 1))[:, kept:]
    editors = Editors(s, made)
    s.tokenizer = Namespace(decode=editors.pixels)
    return s, editors


def same_rows(got: list, right: list) -> None:
    __tracebackhide__ = True
    assert len(got) == len(right), f"{len(got)} rows, not {len(right)}"
    for (name, *scores), (title, *shares) in zip(got, right):
        assert name == title, f"row '{name}', not '{title}'"
        assert [*map(float, scores)] == pytest.approx(shares), \
            f"{name}: edited, baseline {[*map(float, scores)]}, by definition {shares}"


def same_calls(asked: list, right: list) -> None:
    """The arguments of the editing functions. `images` are compared by the sum of each."""
    __tracebackhide__ = True
    assert [x[:2] for x in asked] == [x[:2] for x in right], f"asked for {[x[:2] for x in asked]}"
    for (what, _, how), (_, _, expected) in zip(asked, right):
        assert how.keys() == expected.keys(), f"{what}: arguments {sorted(how)}"
        for name in how:
            assert how[name] == expected[name], \
                f"{what}: {name} {str(how[name])[:40]}, not {str(expected[name])[:40]}"


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


scored = dict(count=st.sampled_from([5, 7]), seed=st.integers(0, 999).map(lambda n: 100 * n))


@for_all(2, **scored)
def test_inpainting_is_scored_as_it_says(count, seed):
    """Does the hidden right half have the shown half's colour, where that one has a colour? The
    baseline is drawn freely. Both have no class and no guidance."""
    s, editors = edited({"inpaint": (1, 1), "6 6": (1, 1)}, count, seed, kept=12)
    with editors.working():
        rows = edit_scores.inpainting(s)
    seen = [shown_by_hand(x[:, :12]) for x in s.pictures]
    cases = [i for i in range(count) if seen[i] >= 0]
    same_rows(rows, [(f"inpainting: colour of the shown half kept ({len(cases)} cases)", *(
        mean(shown_by_hand(editors.made[name][i][:, 12:]) == seen[i] for i in cases)
        for name in ("inpaint", "6 6")))])
    mask = [[[x >= 12 for x in range(24)] for _ in range(24)]]
    how, seeds = s.settings | dict(labels=[10] * count, guidance=1), list(range(count))
    same_calls(editors.asked, [("inpaint", seeds, how | dict(images=s.images.tolist(), mask=mask)),
                               ("6 6", seeds, how | dict(grid=(6, 6)))])


@for_all(2, **scored)
def test_class_editing_is_scored_as_it_says(count, seed):
    """Only the edited part is read. Guidance is half as strong again, rises, and leads away from
    the old class. The baseline is drawn as the new class."""
    names = {"a sixth": 4, "a third": 8}
    s, editors = edited({"6 6": (1, 1), "edit 96": (1, 1), "edit 192": (1, 1)}, count, seed, 4)
    with editors.working():
        rows = edit_scores.class_editing(s, SumJudge())
    new, expected = [(y + 1) % 10 for y in s.labels.tolist()], []
    seeds, how = list(range(count)), s.settings | dict(labels=new)
    calls = [("6 6", seeds, how | dict(grid=(6, 6)))]
    for name, kept in names.items():
        both = [editors.made[what][:, :, kept:] for what in (f"edit {24 * kept}", "6 6")]
        seen = [shown_by_hand(x[:, :kept]) for x in s.pictures]
        expected += [
            (f"class editing, {name} kept: new class read",
             *(mean(x.sum(dtype=int) % 4 == y for x, y in zip(made, new)) for made in both)),
            (f"class editing, {name} kept: its colour kept",
             *(mean(shown_by_hand(x, 0) == y for x, y in zip(made, seen) if y >= 0)
               for made in both))]
        mask = [[[x >= kept for x in range(24)] for _ in range(24)]]
        calls.append((f"edit {24 * kept}", seeds, how | dict(
            images=s.images.tolist(), mask=mask, old=s.labels.tolist(), guidance=1.5 * 2.5,
            guidance_schedule="linear")))
    same_rows(rows, expected)
    same_calls(editors.asked, calls)


@for_all(1, **scored)
def test_outpainting_is_scored_as_it_says(count, seed):
    """Only what is around the picture is read. The baseline is drawn around nothing."""
    s, editors = edited({"outpaint": (2, 2), "12 12": (2, 2)}, count, seed)
    for made in editors.made.values():           # little can be read around other pictures
        made[::2, 4:], made[::2, 12:36, 12:36] = 128, np.roll(s.pictures, 1, 0)[::2]
    with editors.working():
        rows = edit_scores.outpainting(s)
    parts, expected = {}, []
    for what, made in editors.made.items():
        parts[what] = [np.array([x[i, j] for i in range(48) for j in range(48)
                                 if not (12 <= i < 36 and 12 <= j < 36)]) for x in made]
    for name, score in (("ground", light_by_hand), ("colour", shown_by_hand)):
        expected.append((f"outpainting: {name} kept", *(
            mean(score(x) == score(y) for x, y in zip(parts[what], s.pictures))
            for what in ("outpaint", "12 12"))))
    same_rows(rows, expected)
    how, seeds = s.settings | dict(labels=s.labels.tolist(), grid=(12, 12)), list(range(count))
    same_calls(editors.asked, [
        ("outpaint", seeds, how | dict(images=s.images.tolist(), at=(3, 3))),
        ("12 12", seeds, how)])


@for_all(2, **scored)
def test_larger_pictures_are_scored_as_it_says(count, seed):
    """Twice the grid both ways and four times its width, by each method. The baseline is drawn at
    the trained size."""
    methods = "windows", "extrapolate", "interpolate", "ntk"
    sizes = {"6 6": (1, 1)} | {f"{6 * a} {6 * b} {method}": (a, b)
                               for a, b in ((2, 2), (1, 4)) for method in methods}
    s, editors = edited(sizes, count, seed)
    with editors.working():
        rows = edit_scores.larger(s, SumJudge())
    base, expected = shapes_scores(editors.made["6 6"], s.labels, SumJudge()), []
    how, seeds = s.settings | dict(labels=s.labels.tolist()), list(range(count))
    calls = [("6 6", seeds, how | dict(grid=(6, 6)))]
    for name, (a, b) in (("2x2", (2, 2)), ("1x4", (1, 4))):
        for method in methods:
            what = f"{6 * a} {6 * b} {method}"
            scores = shapes_scores(editors.made[what], s.labels, SumJudge())
            expected += [(f"{name}, {method}: {title}", scores[score], base[score])
                         for title, score in (("class accuracy", "class accuracy"),
                                              ("coherence", "colour coherence"))]
            calls.append((what, seeds, how | dict(grid=(6 * a, 6 * b), positions=method)))
    same_rows(rows, expected)
    same_calls(editors.asked, calls)


@for_all(2, **scored, of_shapes=st.booleans())
def test_control_is_scored_as_it_says(count, seed, of_shapes):
    """Edges of the drawn pictures and of the given ones, with and without being told."""
    s, editors = edited({"told": (1, 1), "free": (1, 1)}, count, seed)
    s.of_shapes, s.labels = of_shapes, torch.from_numpy(s.labels)
    with editors.working():
        rows = edit_scores.control(s)
    made = [editors.made[what] for what in ("told", "free")]
    right = [("control: IoU of the outline", *(iou_by_hand(to_device(x, CPU), s.images)
                                               for x in made))]
    if of_shapes:
        right.append(("control: colour coherence", *(mean(map(coherent_by_hand, x))
                                                     for x in made)))
    same_rows(rows, right)
    how, seeds = s.settings | dict(labels=s.labels.tolist()), list(range(count))
    same_calls(editors.asked, [("told", seeds, how | dict(control=edges(s.images).tolist())),
                               ("free", seeds, how | dict(control=None))])


@for_all(6, count=st.sampled_from([1, 99, 100, 101, 250]))
def test_pictures_are_made_a_hundred_at_a_time(count):
    """Every picture has the seed of its number.

    Broken if pictures are missing or drawn twice, or two have the same seed.
    """
    s, sizes = edit_scores.Scorer.__new__(edit_scores.Scorer), []
    s.count = count

    def work(rows, seeds):
        sizes.append(len(seeds))
        ours = torch.arange(count)[rows] + 1000 * torch.tensor(list(seeds))
        return torch.stack([ours % 251, ours // 251 % 251, ours // 251**2], 1)[
            :, :, None, None] / 127.5 - 1

    got = s.batches("x", work)[:, 0, 0]
    right = [[1001 * i % 251, 1001 * i // 251 % 251, 1001 * i // 251**2] for i in range(count)]
    assert got.tolist() == right, "rows and seeds of a batch are not its own"
    assert sizes == [100] * (count // 100) + [count % 100] * (count % 100 > 0), f"batches {sizes}"


def untrained(folder: Path) -> None:
    """An untrained run on shapes that takes condition maps."""
    torch.manual_seed(0)
    tokenizer = VQTokenizer(presets()["shapes"].tokenizer)
    model = ARPG(ModelConfig(dim=16, heads=2, content_layers=1, query_layers=1, ffn_hidden=16,
                             vocab_size=48, control_stride=4))
    checkpoint.save_tokenizer(folder / "tokenizer.pt", tokenizer)
    checkpoint.save(folder / "model.pt", "model", config=vars(model.config),
                    ema=model.state_dict(), classes=list(SHAPES))


@for_all(4, count=st.integers(10, 12), steps=st.integers(1, 9), control=st.booleans(),
         guidance=st.sampled_from([3.0, 1.5]))
def test_the_flags_and_the_printed_columns_are_those_they_say(count, steps, control, guidance):
    """The scores are of a run that draws by the flags, on held-out shapes. A row has the edited
    score, then the baseline."""
    rows = {name: (f"{name}: a score", 0.1 + i / 100, 0.6 + i / 100) for i, name in
            enumerate(("control", "inpainting", "class_editing", "outpainting", "larger"))}
    scorers = []

    def scores(name):
        def call(scorer, *judge):
            scorers.append(scorer)
            return [rows[name]]
        return call

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        untrained(Path(folder))
        for name in rows:
            stack.enter_context(patch.object(edit_scores, name, scores(name)))
        stack.enter_context(patch.object(edit_scores, "shapes_classifier", SumJudge))
        stack.enter_context(patch.object(sys, "argv", [
            "x", folder, "--count", str(count), "--steps", str(steps), "--guidance", str(guidance),
            *["--control"] * control]))
        head, *lines = told(edit_scores.main)
    asked = ["control"] if control else ["inpainting", "class_editing", "outpainting", "larger"]
    assert head.split() == ["edited", "baseline"], f"heads: {head}"
    right = [f"{name}: a score {rows[name][1]:.3f} {rows[name][2]:.3f}" for name in asked]
    assert [" ".join(line.split()) for line in lines] == right, f"{lines}, not {right}"
    right = dict(steps=steps, guidance=guidance, guidance_schedule="constant")
    for s in scorers:
        assert s.settings == right, f"draws with {s.settings}, not {right}"
        pictures, labels = shapes(count, seed=1)
        assert np.array_equal(s.pictures, pictures) and np.array_equal(s.labels, labels), \
            "other pictures than the held-out ones"
        assert torch.equal(s.images, to_device(pictures, CPU)), "other pictures to edit"
        assert (s.count, s.side, s.none) == (count, 24, 10), f"{s.count}, {s.side}, {s.none}"


@pytest.fixture
def run(tmp_path):
    untrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("flags, rows", [(["--control"], 2), ([], 7 + 2 * 4 * 2)])
def test_every_score_is_printed_with_its_baseline(flags, rows, run, monkeypatch, capsys):
    if not flags:
        monkeypatch.setattr(edit_scores, "shapes_classifier",
                            lambda: edit_scores.Classifier(10).eval())
    command = ["x", str(run), "--count", "10", "--steps", "2", "--out", str(run / "x.png"), *flags]
    monkeypatch.setattr(sys, "argv", command)
    assert edit_scores.main() == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == rows and (run / "x.png").stat().st_size > 1000
    assert all(0 <= float(x) <= 1 for line in lines for x in line.split()[-2:])


def test_mistakes_end_in_one_line(run, monkeypatch, capsys):
    for flags, says in ((["--count", "3"], "--count 3"), (["--steps", "37"], "--steps 37")):
        monkeypatch.setattr(sys, "argv", ["x", str(run), *flags])
        assert code_of(edit_scores.main) == 2 and says in capsys.readouterr().err
