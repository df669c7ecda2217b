"""Tests of the tests: plausible mistakes, each with the property that must notice it.

A mutant is a small edit of the package's source, applied in memory for as long as one property
runs. Each is a mistake somebody makes when writing ARPG; reading one and guessing what it breaks is
a good exercise.

    python -m tests.mutants                 # the table: mutant, property, smallest counterexample
    python -m tests.mutants --diff causal   # those with "causal" in the name, as edits
"""

import argparse
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FunctionType
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, given, settings
from tqdm import tqdm

from arpg_mini import attention, decoding, model, training
from tests import test_equivalence as whole
from tests import test_invariants as parts

ARPG, Cache = model.ARPG, attention.Cache
Edit = tuple[object, str, str, str]          # owner, name of its function, old text, new text


@dataclass(frozen=True)
class Mutant:
    name: str                                # the mistake
    killer: Callable                         # the property that must fail
    edits: tuple[Edit, ...]

    def __init__(self, name: str, killer: Callable, *edits: Edit):
        for field, value in (("name", name), ("killer", killer), ("edits", edits)):
            object.__setattr__(self, field, value)


def rewritten(owner: object, name: str, edits: list[tuple[str, str]]) -> object:
    """The function with its source edited; each old text must stand there exactly once."""
    static = isinstance(inspect.getattr_static(owner, name), staticmethod)
    original = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(original))
    for old, new in edits:
        if source.count(old) != 1:
            raise LookupError(f"{owner.__name__}.{name} has {source.count(old)} times: {old}")
        source = source.replace(old, new)
    module = sys.modules[inspect.unwrap(original).__module__]
    space: dict = {}
    exec(compile(source, f"<mutant of {name}>", "exec"), vars(module), space)
    return staticmethod(space[name]) if static and isinstance(space[name], FunctionType) \
        else space[name]


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """The package with the mistake in it, wherever the function was imported to."""
    by_place: dict[tuple[object, str], list[tuple[str, str]]] = {}
    for owner, name, old, new in mutant.edits:
        by_place.setdefault((owner, name), []).append((old, new))
    with ExitStack() as stack:
        for (owner, name), edits in by_place.items():
            original, wrong = getattr(owner, name), rewritten(owner, name, edits)
            places = [owner] if inspect.isclass(owner) else [
                m for key, m in list(sys.modules.items())
                if key.split(".")[0] in ("arpg_mini", "tests") and vars(m).get(name) is original]
            for place in places:
                stack.enter_context(patch.object(place, name, wrong))
        yield


class Remembered:
    """Hypothesis' `data`, keeping what a property draws from it."""

    def __init__(self, data, drawn: dict):
        self.data, self.drawn = data, drawn

    def draw(self, strategy, label):
        self.drawn[label] = self.data.draw(strategy, label=label)
        return self.drawn[label]


@dataclass
class Kill:
    counterexample: dict                     # what the property was about when it failed
    message: str                             # what it then said

    def __str__(self) -> str:
        return "; ".join(repr(v) if k == "case" else f"{k} {getattr(v, '__name__', v)}"
                         for k, v in self.counterexample.items())


def kill(mutant: Mutant, shrink: bool = False) -> Kill | None:
    """Run the mutant's killer against it; None if the property holds. A crash is no kill."""
    drawn: dict = {}

    def claim(*values, **named):
        quantities = signature.bind(*values, **named).arguments
        drawn.clear()
        drawn.update({k: v for k, v in quantities.items() if k != "data"})
        if "data" in quantities:
            quantities["data"] = Remembered(quantities["data"], drawn)
        mutant.killer.claim(**quantities)

    claim.__signature__ = signature = inspect.signature(mutant.killer.claim)
    search = settings(max_examples=max(100, mutant.killer.examples), deadline=None, database=None,
                      derandomize=True, report_multiple_bugs=False,
                      phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
                      suppress_health_check=list(HealthCheck))
    with applied(mutant):
        try:
            search(given(**mutant.killer.quantities)(claim))()
        except AssertionError as failure:
            return Kill(dict(drawn), str(failure).splitlines()[0])
    return None


FORWARD, READ, ASK = (ARPG, "forward"), (ARPG, "read"), (ARPG, "ask")
CONTENT, QUERY = (attention.ContentAttention, "forward"), (attention.QueryAttention, "forward")
DECODE, PLAN = (decoding, "decode_steps"), (decoding, "make_plan")
FILTER, BATCH = (decoding, "filter_logits"), (training, "draw_batch")
TABLE, CHUNKS = (attention, "rotary_table"), (model.ChunkedCrossEntropy, "forward")

MUTANTS = [
    # Who sees whom.
    Mutant("content not causal in training", whole.test_no_peeking,
           (*FORWARD, "table[slots], causal=True", "table[slots], causal=False")),
    Mutant("queries not causal in training", whole.test_no_peeking,
           (*FORWARD, "values, causal=True", "values, causal=False")),
    Mutant("causality switched by model.training", whole.test_no_peeking,
           (*FORWARD, "values, causal=True", "values, causal=self.training")),
    Mutant("content not shifted: slot t holds the answer t", whole.test_no_peeking,
           (*FORWARD, "content[:, :-1]", "content[:, 1:]")),
    Mutant("the newest token hidden from its query in training", whole.test_no_peeking,
           (*FORWARD, "self.ask(table[orders], keys, values,",
            "self.ask(table[orders], F.pad(keys, (0, 0, 1, -1)), F.pad(values, (0, 0, 1, -1)),")),
    Mutant("causal mask in a step off by one: sees the next token",
           whole.test_cached_equals_uncached,
           (*DECODE, ".tril(past)", ".tril(past + 1)")),
    Mutant("causal mask in a step off by one: not itself", whole.test_cached_equals_uncached,
           (*DECODE, ".tril(past)", ".tril(past - 1)")),
    Mutant("causal mask in a step forgets the past", whole.test_cached_equals_uncached,
           (*DECODE, ".tril(past)", ".tril()")),
    Mutant("block and causal swapped", whole.test_decoding_is_its_definition,
           (*DECODE, 'how.within_step == "causal"', 'how.within_step == "block"')),
    Mutant("a step's [MASK]s join its keys: queries see each other",
           whole.test_cached_equals_uncached,
           (*DECODE, "    hidden = model.ask(", """\
    masks = model.read(torch.full_like(targets, model.mask_id).repeat(repeat, 1),
                           plan.table[targets].repeat(repeat, 1, 1))
        keys, values = (torch.cat(x, 2) for x in zip((keys, values), masks))
        hidden = model.ask(""")),
    Mutant("decoding queries under the causal mask of training", whole.test_queries_are_independent,
           (*ASK, "values, causal=causal", "values, causal=True")),
    Mutant("class token attends to known tokens", whole.test_cached_equals_uncached,
           (*DECODE, """\
    keys, values = model.read(model.class_ids(plan.labels), plan.table[class_slot], cache=cache)
    if len(plan.known):
        keys, values = read(plan.known.expand(batch, -1))
""", """\
    first = plan.ids[:, plan.known].repeat(repeat, 1)
    at = torch.cat([class_slot, plan.known.expand(rows, -1)], 1)
    keys, values = model.read(torch.cat([model.class_ids(plan.labels), first], 1),
                              plan.table[at], cache=cache)
""")),
    # Where: rotary positions.
    Mutant("queries rotated to the source's position", whole.test_teacher_forcing,
           (*FORWARD, "self.ask(table[orders]", "self.ask(table[slots]")),
    Mutant("queries rotated to their rank, not their position", whole.test_cached_equals_uncached,
           (*DECODE, "model.ask(plan.table[targets]",
            "model.ask(plan.table[torch.arange(done - size, done).expand(batch, -1)]")),
    Mutant("queries in raster order in training", parts.test_training_is_its_definition,
           (*FORWARD, "self.ask(table[orders]", "self.ask(table[orders.sort().values]")),
    Mutant("tokens rotated to the position they predict", whole.test_teacher_forcing,
           (*FORWARD, "torch.cat([class_slot, orders[:, :-1]], dim=1)", "orders")),
    Mutant("shared keys rotated twice", parts.test_moving_everything_moves_nothing,
           (*READ, "rotate(k, where)", "rotate(rotate(k, where), where)")),
    Mutant("shared keys not rotated", parts.test_moving_everything_moves_nothing,
           (*READ, "rotate(k, where)", "k")),
    Mutant("content keys not rotated", parts.test_moving_everything_moves_nothing,
           (*CONTENT, "rotate(k, rotary)", "k")),
    Mutant("content queries not rotated", parts.test_moving_everything_moves_nothing,
           (*CONTENT, "rotate(q, rotary)", "q")),
    Mutant("values rotated as well", parts.test_moving_everything_moves_nothing,
           (*READ, "v.transpose(1, 2)", "rotate(v, where).transpose(1, 2)")),
    Mutant("row and column swapped", parts.test_rotation_is_its_definition,
           (*TABLE, "rows[:, None].expand(-1, width, -1),", "columns.expand(height, -1, -1),"),
           (*TABLE, "columns[None].expand(height, -1, -1)],",
            "rows[:, None].expand(-1, width, -1)],")),
    Mutant("halves rotated in place of neighbouring pairs", parts.test_rotation_is_its_definition,
           (attention, "rotate", "unflatten(-1, (-1, 2))",
            "unflatten(-1, (2, -1)).transpose(-1, -2).contiguous()")),
    Mutant("turned the other way", parts.test_rotation_is_its_definition,
           (attention, "rotate", "rotary[:, :, None]", "rotary[:, :, None].conj()")),
    Mutant("frequencies spread over K in place of K/2", parts.test_rotation_is_its_definition,
           (*TABLE, "/ (head_dim // 2))", "/ head_dim)")),
    Mutant("angles in bfloat16", parts.test_rotation_is_its_definition,
           (*TABLE, "torch.polar(torch.ones_like(angles), angles)",
            "torch.polar(torch.ones_like(angles), angles.bfloat16().double())")),
    Mutant("one coordinate in place of two", parts.test_rotary_scores_know_displacements_only,
           (*TABLE, "rows[:, None].expand(-1, width, -1)", "(rows[:, None] + columns)"),
           (*TABLE, "columns[None].expand(height, -1, -1)", "(rows[:, None] + columns)")),
    Mutant("class slot rotated like position 0", parts.test_the_class_slot_scores_zero_everywhere,
           (*TABLE, "torch.zeros_like(table[:1])", "torch.ones_like(table[:1])")),
    # The cache.
    Mutant("cache written one slot late", parts.test_cache_slots_are_written_once_in_order,
           (Cache, "__init__", "heads, slots, head_dim,", "heads, slots + 1, head_dim,"),
           (Cache, "append", "end = self.length +", "end = 1 + self.length +"),
           (Cache, "append", "pair[0, :, :, self.length:]", "pair[0, :, :, self.length + 1:]"),
           (Cache, "append", "pair[1, :, :, self.length:]", "pair[1, :, :, self.length + 1:]")),
    Mutant("cache read to its end", parts.test_cache_slots_are_written_once_in_order,
           (Cache, "append", "return pair[0], pair[1]", "return tuple(self.pairs[layer])")),
    Mutant("a step's last slot overwritten by the next step",
           parts.test_cache_slots_are_written_once_in_order,
           (Cache, "advance", "+= slots", "+= max(1, slots - 1)")),
    Mutant("all layers share one cache", parts.test_cache_slots_are_written_once_in_order,
           (Cache, "append", "self.pairs[layer,", "self.pairs[0,")),
    Mutant("keys cached before they are rotated", whole.test_decoding_is_its_definition,
           (*READ, "k, v = cache.append(len(self.content), k, v)",
            "k = rotate(k.transpose(1, 2), where.conj()).transpose(1, 2)\n"
            "        k, v = cache.append(len(self.content), k, v)")),
    # Orders and steps.
    Mutant("one order for the whole batch", whole.test_samples_do_not_depend_on_their_batch,
           (*PLAN, "orders = orders.expand(batch, n)", "orders = orders[:1].expand(batch, n)")),
    Mutant("one order for the whole training batch", parts.test_training_draws_for_each_sample,
           (*BATCH, ".random((batch, n))", ".random((1, n)).repeat(batch, 0)")),
    Mutant("last step's tokens lost", whole.test_every_position_is_decoded_exactly_once,
           (*DECODE, "plan.ids.scatter_(1, targets, drawn)",
            "plan.ids.scatter_(1, targets, drawn if done < plan.orders.shape[1] else -1)")),
    Mutant("known positions not left out of the order",
           whole.test_every_position_is_decoded_exactly_once,
           (*PLAN, "orders[~is_known[orders]].view(batch, -1)",
            "orders[:, :int((~is_known).sum())]")),
    Mutant("last step takes its share, not the rest",
           parts.test_steps_add_up_and_follow_their_curve,
           (decoding, "step_sizes", " if s < steps else n - done", "")),
    Mutant("logits scattered back to raster order", whole.test_teacher_forcing,
           (*FORWARD, "return self.head(x)",
            "return self.head(x.scatter(1, orders[..., None].expand_as(x), x))")),
    # Guidance.
    Mutant("unconditional half given the class", whole.test_guidance,
           (*PLAN, "torch.full_like(labels, model.null_label)", "labels")),
    Mutant("`done` without this step's tokens", whole.test_guidance,
           (*DECODE, "done / plan.orders.shape[1]", "(done - size) / plan.orders.shape[1]")),
    Mutant("the two halves swapped", whole.test_guide_is_its_definition,
           (decoding, "guide", "c, u = logits", "u, c = logits")),
    Mutant("guidance 0, not 1, means conditional", whole.test_guide_is_its_definition,
           (decoding, "guide", "return u +", "return c +")),
    Mutant("guidance also costs a second half at 1", whole.test_guidance,
           (*PLAN, "if settings.guidance != 1:", "if True:")),
    Mutant("the halves' tokens interleaved, not stacked", whole.test_cached_equals_uncached,
           (*DECODE, "gather(1, positions).repeat(repeat, 1)",
            "gather(1, positions).repeat_interleave(repeat, 0)")),
    # Sampling.
    Mutant("top-p cuts the id that crosses the threshold",
           parts.test_filters_are_their_slow_definition,
           (*FILTER, "before >= top_p", "before + probabilities >= top_p")),
    Mutant("top-p sorted along the wrong axis", parts.test_filters_are_their_slow_definition,
           (*FILTER, "logits.sort(dim=-1,", "logits.sort(dim=0,"),
           (*FILTER, "probabilities = ranked.softmax(-1)", "probabilities = ranked.softmax(0)"),
           (*FILTER, "probabilities.cumsum(-1)", "probabilities.cumsum(0)"),
           (*FILTER, ".scatter(-1,", ".scatter(0,")),
    Mutant("top-p of what top-k left not renormalised",
           parts.test_filters_are_their_slow_definition,
           (*FILTER, "logits = logits / temperature", "logits = whole = logits / temperature"),
           (*FILTER, "probabilities = ranked.softmax(-1)",
            "probabilities = whole.softmax(-1).gather(-1, ids)")),
    Mutant("top-k keeps one too many", parts.test_filters_are_their_slow_definition,
           (*FILTER, "logits.topk(top_k,", "logits.topk(top_k + 1,")),
    Mutant("multiplied by the temperature", parts.test_filters_are_their_slow_definition,
           (*FILTER, "logits / temperature", "logits * temperature")),
    Mutant("temperature 0 taken for a small one", parts.test_temperature_has_its_limits,
           (*FILTER, "top_k, temperature = 1, 1.0", "temperature = 0.1")),
    Mutant("inverse CDF takes the boundary's lower id",
           parts.test_inverse_cdf_follows_the_distribution,
           (decoding, "inverse_cdf", "right=True", "right=False")),
    Mutant("cumulative sum in float32", parts.test_inverse_cdf_is_precise_at_16384_ids,
           (decoding, "inverse_cdf", "logits.double()", "logits.float()")),
    Mutant("uniform numbers drawn per step", parts.test_noise_belongs_to_seed_and_position,
           (*DECODE, "plan.noise.gather(1, targets)", "plan.noise[:, :size]")),
    Mutant("uniform numbers by rank", parts.test_noise_belongs_to_seed_and_position,
           (*DECODE, "plan.noise.gather(1, targets)", "plan.noise[:, done - size:done]")),
    Mutant("seeds shared by the batch", whole.test_samples_do_not_depend_on_their_batch,
           (decoding, "position_noise", "for s in seeds", "for s in [seeds[0]] * len(seeds)")),
    Mutant("one random stream runs through the batch",
           whole.test_samples_do_not_depend_on_their_batch,
           (decoding, "position_noise", "np.random.default_rng([NOISE, s]).random(n)",
            "rng.random(n) for rng in [np.random.default_rng([NOISE, *seeds])]")),
    Mutant("one uniform number for a whole image", whole.test_images_follow_the_models_distribution,
           (*DECODE, "plan.noise.gather(1, targets)", "plan.noise[:, :1].expand(-1, size)")),
    Mutant("orders and noise from one stream", parts.test_seeds_have_orders_and_noise_of_their_own,
           (decoding, "random_orders", "np.random.default_rng([ORDER, s]).permutation(n)",
            "np.random.default_rng([NOISE, s]).random(n).argsort()")),
    # Training.
    Mutant("targets not permuted like inputs", parts.test_the_loss_is_its_definition,
           (*FORWARD, "content.flatten()", "tokens.flatten()")),
    Mutant("label dropped for the whole batch", parts.test_training_draws_for_each_sample,
           (*BATCH, ".random(batch)[rows] <", ".random(1).repeat(batch)[rows] <")),
    Mutant("each process draws its own orders", parts.test_training_draws_for_each_sample,
           (*BATCH, "generator(seed, ORDERS, step)", "generator(seed + rank, ORDERS, step)")),
    Mutant("mean of the chunks' means", parts.test_the_loss_is_its_definition,
           (*CHUNKS, 't, reduction="sum")', "t) * rows")),
    Mutant("the chunked gradient not scaled by what follows", parts.test_the_loss_is_its_definition,
           (model.ChunkedCrossEntropy, "backward", "d_hidden * d_total,", "d_hidden,")),
    # The formulas.
    Mutant("gate and value of the feed-forward swapped", whole.test_decoding_is_its_definition,
           (model.FeedForward, "forward", "F.silu(gate) * value", "gate * F.silu(value)")),
    Mutant("shared keys and values not normed", whole.test_decoding_is_its_definition,
           (*READ, "self.kv(self.kv_norm(x))", "self.kv(x)")),
    Mutant("norm without its mean: divided by the length", whole.test_decoding_is_its_definition,
           (attention.RMSNorm, "forward", "F.rms_norm(wide, self.gain.shape, eps=self.eps)",
            "F.normalize(wide, dim=-1, eps=self.eps)")),
    Mutant("norms rounded to bfloat16", whole.test_low_precision_only_rounds,
           (attention.RMSNorm, "forward", ".to(x.dtype) * self.gain",
            ".bfloat16().to(x.dtype) * self.gain")),
    # What a decode leaves behind.
    Mutant("dropout by model.training", parts.test_an_interrupted_decode_leaves_nothing_behind,
           (*READ, "F.dropout(self.embedding(ids), dropout)",
            "F.dropout(self.embedding(ids), 0.1, self.training)")),
    Mutant("evaluation mode switched on, and off only at the end",
           parts.test_an_interrupted_decode_leaves_nothing_behind,
           (*DECODE, "    how = Settings",
            "    was = model.training\n    model.eval()\n    how = Settings"),
           (*DECODE, "    if not plan.sizes:", "    model.train(was)\n    if not plan.sizes:")),
]


def table(mutants: list[Mutant]) -> Iterator[str]:
    """Markdown, a row as soon as its mutant is dead."""
    yield "| mutant | property that kills it | smallest counterexample |\n|---|---|---|"
    for mutant in tqdm(mutants, desc="mutants", leave=False):
        found = kill(mutant, shrink=True)
        what = f"{found}: **{found.message}**" if found else "**none: it survives**"
        yield f"| {mutant.name} | `{mutant.killer.__name__}` | {what} |"


def diff(mutant: Mutant) -> str:
    lines = [f"{mutant.name} (killed by {mutant.killer.__name__})"]
    for owner, name, old, new in mutant.edits:
        lines.append(f"  in {owner.__name__.split('.')[-1]}.{name}:")
        lines += [f"  - {line.strip()}" for line in old.splitlines()]
        lines += [f"  + {line.strip()}" for line in new.splitlines()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("name", nargs="?", default="", help="only mutants with this in their name")
    parser.add_argument("--diff", action="store_true", help="show the edits and run nothing")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if options.name in m.name]
    if not chosen:
        parser.error(f"{options.name}: no mutant has this in its name")
    for row in map(diff, chosen) if options.diff else table(chosen):
        tqdm.write(row)


if __name__ == "__main__":
    main()
