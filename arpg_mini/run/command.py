"""How every command reads its flags and reports a user's mistake: one line, exit code 2."""

import argparse
import contextlib
import math
import os
import re
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from .. import UserError

try:
    import fcntl
except ImportError:                             # Windows
    fcntl = None

# A row: the flag, what it takes (bool: nothing; a tuple: one of its words), its help, its default.
Flags = dict[str, list[tuple]]
DEVICE = ("--device", str, "cpu or cuda (default: cuda if there is one)")
PRECISION = ("float32", "bfloat16")
LAUNCHED = "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "MASTER_ADDR"


class Parser(argparse.ArgumentParser):
    """Prints one line when a flag is wrong, and ends with exit code 2."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        print_anything()

    def error(self, message: str):
        sys.exit(complain(self.prog, re.sub(r"^argument (-\S+): (?=.*: must be)", r"\1 ", message)))

    def parse_known_args(self, *arguments):
        options, rest = super().parse_known_args(*arguments)
        for name, value in vars(options).items():
            if value == []:                     # Python 3.11 stores this for --flag=--
                self.error(f"argument --{name.replace('_', '-')}: --: must be a value")
        return options, rest

    def add_flags(self, flags: Flags) -> None:
        """Add groups of flags, by title."""
        for title, rows in flags.items():
            group = self.add_argument_group(title)
            for flag, kind, text, *default in rows:
                if isinstance(kind, tuple):
                    text, kind = f"{text} [{', '.join(kind)}]", choice(*kind)
                how = {"type": KINDS.get(kind, kind), "default": (*default, None)[0]}
                group.add_argument(flag, help=text,
                                   **{"action": "store_true"} if kind is bool else how)


def given(kind: type) -> Callable[[str], object]:
    """A flag that takes any text but an empty one, as a variable that is not set gives."""
    def parse(text: str) -> object:
        if not text.strip():
            raise argparse.ArgumentTypeError("must be something, not empty")
        return kind(text)
    return parse


KINDS = {str: given(str), Path: given(Path)}


def choice(*names: str) -> Callable[[str], str]:
    """A flag that takes one of some names."""
    def parse(text: str) -> str:
        if text not in names:
            one_of = "one of " * (len(names) > 1)
            raise argparse.ArgumentTypeError(f"{text}: must be {one_of}{', '.join(names)}")
        return text
    return parse


def number(kind: type, least: float, most: float = math.inf) -> Callable[[str], float]:
    """A flag that takes a number in a range."""
    def parse(text: str) -> float:
        try:
            if least <= kind(text) <= min(most, 2**62 if kind is int else sys.float_info.max):
                return kind(text)
        except ValueError:
            pass
        until = " or more" if most == math.inf else f" to {most}"
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


def check_output(flag: str, file: Path, ending: str) -> None:
    """UserError unless a file of this ending can be written there."""
    if file.is_dir():
        raise UserError(f"{flag} {file}: is a folder, not a file")
    if file.suffix.lower() != ending:
        raise UserError(f"{flag} {file}: must end in {ending}, the format that is written")
    if not file.parent.is_dir():
        raise UserError(f"{flag} {file}: no such folder as {file.parent}")
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {file}: this user may not write into {file.parent}")


def launcher() -> tuple[int, int, int] | None:
    """RANK, WORLD_SIZE and LOCAL_RANK, if torchrun or another launcher started this process. A
    launcher sets all of `LAUNCHED`. If some are unset or empty, the others are left over from
    something else and mean nothing. UserError names numbers that can't be."""
    if not all(os.environ.get(name) for name in LAUNCHED):
        return None
    texts = [os.environ[name] for name in LAUNCHED]
    if all(text.isdecimal() for text in texts[:4]) and int(texts[0]) < int(texts[1]):
        return int(texts[0]), int(texts[1]), int(texts[2])
    raise UserError(f"{', '.join(map('='.join, zip(LAUNCHED[:4], texts)))}: must be whole numbers, "
                    "RANK below WORLD_SIZE; unset them if no launcher started this program")


def interface_to(address: str) -> str | None:
    """The network interface on the way to an address, on Linux. (Gloo takes the one of the host's
    own name, which is often reachable from this machine only.)"""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))                     # sends nothing
            for _, name in socket.if_nameindex():
                request = struct.pack("256s", name.encode())
                with contextlib.suppress(OSError):          # one without an address
                    found = fcntl.ioctl(probe.fileno(), 0x8915, request)[20:24]     # SIOCGIFADDR
                    if socket.inet_ntoa(found) == probe.getsockname()[0]:
                        return name
    except (OSError, AttributeError):                       # no route; no fcntl
        pass
    return None


def print_anything() -> None:
    """Print characters that the terminal does not know as escape codes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def complain(program: str, message: object) -> int:
    """Print one line for the user and return the exit code of their mistakes."""
    if isinstance(message, OSError) and message.filename:
        message = f"{message.filename}: {message.strerror}"
    print(f"{program}: error: {' '.join(str(message).split())}", file=sys.stderr)
    return 2


def exit_code(program: str, work: Callable[[], int | None]) -> int:
    """Do the work. A mistake of the user, or a file or disk that fails, ends in one line and code
    2, Ctrl-C in one line and 130."""
    try:
        return work() or 0
    except BrokenPipeError:                     # as in `| head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (UserError, OSError) as error:
        return complain(program, error)
    except KeyboardInterrupt:
        complain(program, "interrupted")
        return 130
