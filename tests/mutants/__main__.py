"""Print the table of mutants, or their edits, or try systematic mutants."""

from collections.abc import Iterator

from tqdm import tqdm

from arpg_mini.run.command import Parser, number
from tests.mutants import Mutant, diff, kill
from tests.mutants.rooms import ROOMS
from tests.mutants.systematic import campaign, sources


def row(mutant: Mutant) -> str:
    found = kill(mutant, shrink=True)
    what = f"{found}: **{found.message}**" if found else "**none: the mutant survives**"
    return f"| {mutant.name} | `{mutant.killer.__name__}` | {what} |"


def table(rooms: dict[str, list[Mutant]]) -> Iterator[str]:
    """Markdown rows by room, each as soon as its mutant has run; then a table of the rooms."""
    counts = []
    for room, mutants in rooms.items():
        yield f"\n{room}\n\n| mutant | property that kills it | smallest counterexample |"
        yield "|---|---|---|"
        rows = []
        for mutant in tqdm(mutants, desc=room, leave=False):
            rows.append(row(mutant))
            yield rows[-1]
        killers = len({mutant.killer for mutant in mutants})
        dead = sum("the mutant survives" not in line for line in rows)
        counts.append(f"| {room} | {len(rows)} | {dead} | {killers} |")
    yield "\n| room | made | killed | by properties |\n|---|--:|--:|--:|"
    yield from counts


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
    chosen = {room: found for room, mutants in ROOMS.items()
              if (found := [m for m in mutants if options.name.lower() in m.name.lower()])}
    if not chosen:
        parser.error(f"{options.name}: no mutant's name contains this")
    if options.systematic:
        lines = campaign(options.systematic, options.count, options.seed)
    else:
        lines = map(diff, sum(chosen.values(), [])) if options.diff else table(chosen)
    for line in lines:
        tqdm.write(line)


if __name__ == "__main__":
    main()
