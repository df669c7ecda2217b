"""Mistakes in exact decoding."""

from arpg_mini import exact
from tests import test_exact as props
from tests.mutants import Mutant

STEPS = exact, "exact_steps"
same = props.test_exact_decoding_draws_the_ids_of_one_token_a_step
final = props.test_right_guesses_are_final_at_once
alone = props.test_a_sample_depends_on_no_other_in_ids_and_passes
count = props.test_it_takes_the_passes_of_its_definition

EXACT = [
    Mutant("a guessed token sees the next one", same,
           (*STEPS, "mask=first(base + at + 1,", "mask=first(base + at + 2,")),
    Mutant("a guessed token does not see itself", same,
           (*STEPS, "mask=first(base + at + 1,", "mask=first(base + at,")),
    Mutant("a query sees the slot of its own guess", same,
           (*STEPS, "first(base + at.minimum(filled[:, None]),",
            "first(base + (at + 1).minimum(filled[:, None]),")),
    Mutant("a query does not see the token before it", same,
           (*STEPS, "first(base + at.minimum(filled[:, None]),",
            "first(base + (at - 1).clamp(min=0).minimum(filled[:, None]),")),
    Mutant("a query sees stale slots", same,
           (*STEPS, "first(base + at.minimum(filled[:, None]),", "first(base + at,"),
           (*STEPS, "many = int((filled - done).max()) + 1",
            "many = 1 + 0 * int((filled - done).max())")),
    Mutant("the newest final token is not encoded again: its slot holds a wrong guess", same,
           (*STEPS, "(done[:, None] - 1 + rank[:many])", "(done[:, None] + rank[:many])")),
    Mutant("one draw too many is final", same,
           (*STEPS, "(done + 1 + right)", "(done + 2 + right)")),
    Mutant("one draw too few is final after right guesses", final,
           (*STEPS, "(done + 1 + right)", "(done + 1 + (right - 1).clamp(min=0))")),
    Mutant("right guesses count although one before them was wrong", same,
           (*STEPS, "[:, :-1].long().cumprod(1).sum(1)", "[:, :-1].long().sum(1)")),
    Mutant("guesses after a wrong one are thrown away", count,
           (*STEPS, "drawn.scatter_(1, at, new)",
            "drawn.scatter_(1, at, new.masked_fill(at >= done[:, None], -1))")),
    Mutant("a first guess sees only what is final", count,
           (*STEPS, "first(base + at.minimum(filled[:, None]),",
            "first(base + torch.where(at > filled[:, None], done[:, None], at),")),
    Mutant("the newest guess is not encoded", count,
           (*STEPS, "filled = (drawn >= 0).sum(1).clamp(max=unknown - 1)",
            "filled = ((drawn >= 0).sum(1) - 1).maximum(done).clamp(max=unknown - 1)")),
    Mutant("a guess checked against the next rank's draw", same,
           (*STEPS, "(drawn.gather(1, at) == new)[:, :-1]",
            "(drawn.gather(1, at)[:, 1:] == new[:, :-1])")),
    Mutant("noise of the rank and not of the position", same,
           (*STEPS, "plan.noise.gather(1, targets)", "plan.noise.gather(1, at)")),
    Mutant("noise drawn anew in every pass", same,
           (*STEPS, "plan.noise.gather(1, targets)",
            "(plan.noise.gather(1, targets) + 0.37 * done[:, None]) % 1")),
    Mutant("guidance by the share of the pass and not of the rank", same,
           (*STEPS, "share_done = (at + 1)", "share_done = (0 * at + done[:, None] + 1)")),
    Mutant("guidance by the share before the rank", same,
           (*STEPS, "share_done = (at + 1)", "share_done = at")),
    Mutant("samples wait for the slowest", alone,
           (*STEPS, "(done + 1 + right)", "(done + 1 + right.min())")),
    Mutant("a finished sample's keys stay in the batch", alone,
           (*STEPS, "cache.keep(torch.cat([going + half * len(rows) for half in range(repeat)]))",
            "cache.pairs = cache.pairs[:, :, :len(going) * repeat]")),
    Mutant("the rows without class leave with the wrong samples", alone,
           (*STEPS, "going + half * len(rows)", "going + half * len(going)")),
    Mutant("the noise of finished samples stays", alone,
           (*STEPS, "noise=plan.noise[going]", "noise=plan.noise")),
    Mutant("the last known token's slot is overwritten", same,
           (*STEPS, "rank = torch.arange(unknown,", "base -= 1 if base > 1 else 0\n"
            "    rank = torch.arange(unknown,")),
    Mutant("tokens one slot early: over the class", same,
           (*STEPS, "both(base + at), base", "both(base + at - 1), base")),
    Mutant("uninitialised memory is read", props.test_memory_that_was_left_behind_changes_nothing,
           (*STEPS, "cache.pairs.zero_()", "cache.pairs")),
    Mutant("hints of finished samples stay", props.test_condition_maps_are_followed,
           (*STEPS, "plan.hints[going])", "plan.hints)")),
    Mutant("a guess is shown as final",
           props.test_what_is_final_never_changes_and_grows_in_every_pass,
           (*STEPS, "rank >= done[:, None]", "rank > done[:, None]")),
]
