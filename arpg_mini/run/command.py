"""How every command reads its flags and reports a user's mistake: one line, exit code 2."""

import argparse
import re
import sys
from collections.abc import Callable

from .. import UserError

# A row: the flag, what it takes (bool: nothing; a tuple: one of its words), its help, its default.
Flags = dict[str, list[tuple]]
DEVICE = ("--device", str, "cpu or cuda (default: cuda if there is one)")
PRECISION = ("float32", "bfloat16")


class Parser(argparse.ArgumentParser):
    """Prints one line when a flag is wrong, and ends with exit code 2."""

    def error(self, message: str):
        sys.exit(complain(self.prog, re.sub(r"^argument (-\S+): (?=.*: must be)", r"\1 ", message)))

    def add_flags(self, flags: Flags) -> None:
        """Add groups of flags, by title."""
        for title, rows in flags.items():
            group = self.add_argument_group(title)
            for flag, kind, text, *default in rows:
                if isinstance(kind, tuple):
                    text, kind = f"{text} [{', '.join(kind)}]", choice(*kind)
                how = {"type": kind, "default": (*default, None)[0]}
                group.add_argument(flag, help=text,
                                   **{"action": "store_true"} if kind is bool else how)


def choice(*names: str) -> Callable[[str], str]:
    """A flag that takes one of some names."""
    def parse(text: str) -> str:
        if text not in names:
            one_of = "one of " * (len(names) > 1)
            raise argparse.ArgumentTypeError(f"{text}: must be {one_of}{', '.join(names)}")
        return text
    return parse


def number(kind: type, least: float, most: float = sys.float_info.max) -> Callable[[str], float]:
    """A flag that takes a number in a range."""
    def parse(text: str) -> float:
        try:
            if least <= kind(text) <= most:
                return kind(text)
        except ValueError:
            pass
        until = " or more" if most == sys.float_info.max else f" to {most}"
        raise argparse.ArgumentTypeError(
            f"{text}: must be {least}{until}{', a whole number' * (kind is int)}")
    return parse


def numbers(form: str, least: int) -> Callable[[str], tuple[int, ...]]:
    """A flag that takes whole numbers in a form such as HxW or ROW,COL."""
    mark = "," if "," in form else "x"

    def parse(text: str) -> tuple[int, ...]:
        words = text.split(mark)
        if len(words) != len(form.split(mark)) or not all(w.isdecimal() and int(w) >= least
                                                          and len(w) < 6 for w in words):
            raise argparse.ArgumentTypeError(
                f"{text}: must be {form}, whole numbers, {least} or more")
        return tuple(map(int, words))
    return parse


def complain(program: str, message: object) -> int:
    """Print one line for the user and return the exit code of their mistakes."""
    print(f"{program}: error: {message}", file=sys.stderr)
    return 2


def exit_code(program: str, work: Callable[[], int | None]) -> int:
    """Do the work. A user's mistake ends in one line and code 2, Ctrl-C in one line and 130."""
    try:
        return work() or 0
    except UserError as error:
        return complain(program, error)
    except KeyboardInterrupt:
        complain(program, "interrupted")
        return 130
