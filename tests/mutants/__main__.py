"""Print the table of mutants, or their edits, or try systematic mutants."""

from collections.abc import Iterator

from tqdm import tqdm

from arpg_mini.run.command import Parser, number
from tests.mutants import Mutant, diff, kill
from tests.mutants.catalogue import MUTANTS
from tests.mutants.systematic import campaign, sources


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
    parser.add_argument("--systematic", metavar="ROOM", help="break a file or folder of the "
                        "package, such as training or data/ids, or all, in many small ways")
    parser.add_argument("--count", type=number(int, 1), default=20, help="of systematic mutants")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="which ones (default 0)")
    options = parser.parse_args()
    if options.systematic and not sources(options.systematic):
        parser.error(f"--systematic {options.systematic}: no file or folder of the package")
    chosen = [m for m in MUTANTS if options.name.lower() in m.name.lower()]
    if not chosen:
        parser.error(f"{options.name}: no mutant's name contains this")
    if options.systematic:
        lines = campaign(options.systematic, options.count, options.seed)
    else:
        lines = map(diff, chosen) if options.diff else table(chosen)
    for line in lines:
        tqdm.write(line)


if __name__ == "__main__":
    main()
