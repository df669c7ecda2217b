"""The README against the repository: its tree, its commands, its pictures."""

import ast
import re
import shlex
import subprocess

import pytest

import sample_mini
import train_mini
from tests.helpers import ROOT

README = (ROOT / "README.md").read_text()


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True,
                            text=True).stdout.split()
    return [f for f in listed if (ROOT / f).exists()] or pytest.fail("not a git checkout")


def test_the_tree_names_every_source_file_and_nothing_else():
    tree = re.search(r"```\narpg_mini/\n(.*?)```", README, re.S).group(1)
    named, folder = set(), "arpg_mini/"
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        if name.endswith("/"):
            folder = name
        else:
            named.add((folder if indent else "") + name)
        assert len(line.split(None, 1)) == 2, f"{name}: no word on what it is for"
    real = {f for f in tracked()
            if f.startswith("arpg_mini/") and f.endswith(".py") and "__init__" not in f}
    real |= {f for f in tracked() if "/" not in f and f.endswith(".py")}
    assert {n for n in named if n.endswith(".py") and "test" not in n} == real


def commands() -> list[str]:
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", README, re.S)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines()
            if "_mini.py" in line]


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_readme_parses(command):
    """Broken if a flag was renamed, or a sentence promises one that isn't there."""
    words = shlex.split(command.split("&&")[-1])
    script = next(i for i, word in enumerate(words) if word.endswith("_mini.py"))
    module = {"train_mini.py": train_mini, "sample_mini.py": sample_mini}[words[script]]
    module.parse(words[script + 1:])


def test_pictures_and_links_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_two_commands_stand_there():
    assert "pip install -r requirements.txt && python train_mini.py" in README
    assert "pip install -r requirements.txt && python -m pytest" in README


def test_the_layout_holds_nothing_else():
    top = {f.split("/")[0] for f in tracked()}
    assert top <= {"arpg_mini", "tutorial", "tests", "train_mini.py", "sample_mini.py",
                   "requirements.txt", "README.md", "LICENSE", "pyproject.toml", ".gitignore",
                   ".ci"}


def lines_of_code(text: str) -> int:
    """Lines that are neither blank nor comment nor docstring: documentation is not to be saved
    on."""
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef
    documented = [node.body[0] for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)
                  and ast.get_docstring(node, clean=False) is not None]
    words = {n for d in documented for n in range(d.lineno, d.end_lineno + 1)}
    return sum(n not in words and bool(line.strip()) and not line.strip().startswith("#")
               for n, line in enumerate(text.splitlines(), 1))


def test_files_stay_short():
    """The package: under 2,500 lines of code. Not counted among it: what the two scripts do, and
    the instruments that measure. A file under 340 lines, a script under 250, in all."""
    assert lines_of_code('"""a\n\nb"""\nx = """\nc\n"""\n\n# d\ndef f():\n    "e"\n    y') == 5
    text = {f: (ROOT / f).read_text() for f in tracked() if f.endswith(".py")}
    lines = {f: len(t.splitlines()) for f, t in text.items()}
    code = {f: lines_of_code(t) for f, t in text.items() if f.startswith("arpg_mini/")}
    scripts, measuring = (
        [code.pop(f"arpg_mini/{name}.py") for name in names.split()]
        for names in ("runs saving drawing", "judge distances evaluation edit_scores plan timing "
                      "raster bench_decode bench"))
    assert sum(code.values()) <= 2500 and max(scripts) <= 300 and sum(measuring) <= 1200
    assert all(n <= 340 for f, n in lines.items() if f.startswith("arpg_mini/"))
    assert all(lines[f] <= 250 for f in ("train_mini.py", "sample_mini.py"))
    assert max(len(line) for f in lines if f.startswith("arpg_mini/")
               for line in (ROOT / f).read_text().splitlines()) <= 100
