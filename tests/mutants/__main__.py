"""Print the table of mutants, or their edits."""

from collections.abc import Iterator

from tqdm import tqdm

from arpg_mini.run.command import Parser
from tests.mutants import Mutant, diff, kill
from tests.mutants.catalogue import MUTANTS


def row(mutant: Mutant) -> str:
    found = kill(mutant, shrink=True)
    what = f"{found}: **{found.message}**" if found else "**none: the mutant survives**"
    return f"| {mutant.name} | `{mutant.killer.__name__}` | {what} |"


def table(mutants: list[Mutant]) -> Iterator[str]:
    """Markdown rows. Each comes as soon as its mutant has run."""
    yield "| mutant | property that kills it | smallest counterexample |\n|---|---|---|"
    for mutant in tqdm(mutants, desc="mutants", leave=False):
        yield row(mutant)


def main() -> None:
    parser = Parser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("name", nargs="?", default="", help="only mutants whose name contains this")
    parser.add_argument("--diff", action="store_true", help="print the edits, run nothing")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if options.name.lower() in m.name.lower()]
    if not chosen:
        parser.error(f"{options.name}: no mutant's name contains this")
    for line in map(diff, chosen) if options.diff else table(chosen):
        tqdm.write(line)


if __name__ == "__main__":
    main()
