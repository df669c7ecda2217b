"""README and measured.md against the repository: tree, commands, pictures, layout."""

import ast
import importlib.util
import re
import shlex
import subprocess

import pytest

from arpg_mini.measure import bench
from arpg_mini.run import describe, request
from tests.helpers import ROOT

README = (ROOT / "README.md").read_text()
PAGES = {"README.md": README, "measured.md": (ROOT / "tutorial" / "measured.md").read_text()}
ROOMS = ("arpg_mini", "arpg_mini/data", "arpg_mini/run", "arpg_mini/measure")


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True,
                            text=True).stdout.split()
    return [f for f in listed if (ROOT / f).exists()] or pytest.fail("not a git checkout")


def sources(room: str) -> list[str]:
    """The Python files of one folder, without `__init__.py`."""
    return [f for f in tracked() if f.endswith(".py") and f.rpartition("/")[0] == room
            and "__init__" not in f]


def test_the_tree_names_every_source_file_and_nothing_else():
    tree = re.search(r"```\narpg_mini/\n(.*?)```", README, re.S).group(1)
    paper, *rooms = re.split(r"^  (?:data|run|measure)/ ", tree, flags=re.M)
    *rooms, last = rooms
    last, scripts = re.split(r"^(?=train_mini)", last, flags=re.M)
    for room, text in zip(ROOMS, [paper, *rooms, last]):
        assert set(re.findall(r"(\w+\.py)\b", text)) == {
            f.rpartition("/")[2] for f in sources(room)}, room
    assert set(re.findall(r"^\w+\.py", scripts, re.M)) == set(sources(""))


def commands() -> list[tuple[str, str]]:
    blocks = [(page, block) for page, text in PAGES.items()
              for block in re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.S)]
    return [(page, line.split(" #")[0].strip()) for page, block in blocks
            for line in block.splitlines()]


@pytest.mark.parametrize("page, command", commands())
def test_every_command_of_the_pages_parses(page, command):
    """Broken if a flag or a module was renamed, or a page promises one that does not exist."""
    words = shlex.split(command.split("&&")[-1])
    if script := [word for word in words if word.endswith("_mini.py")]:
        parse = {"train_mini.py": describe.parse, "sample_mini.py": request.parse}[script[0]]
        parse(words[words.index(script[0]) + 1:])
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), words[2]
        if words[2] == "arpg_mini.measure.bench":
            bench.parse(words[3:])
    else:
        assert words[0] == "pip"


@pytest.mark.parametrize("page", PAGES)
def test_pictures_and_links_exist(page):
    folder = ROOT if page == "README.md" else ROOT / "tutorial"
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", PAGES[page]):
        assert (folder / target).exists(), target


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
    """The paper: at most 2,100 lines, 1,370 of them code, in files of at most 250. The README: at
    most 180 lines, a script 100, any other file 300."""
    assert lines_of_code('"""a\n\nb"""\nx = """\nc\n"""\n\n# d\ndef f():\n    "e"\n    y') == 5
    text = {f: (ROOT / f).read_text() for room in (*ROOMS, "") for f in sources(room)}
    lines = {f: len(t.splitlines()) for f, t in text.items()}
    paper = [*sources("arpg_mini"), "arpg_mini/__init__.py"]
    text["arpg_mini/__init__.py"] = (ROOT / "arpg_mini/__init__.py").read_text()
    assert sum(len(text[f].splitlines()) for f in paper) <= 2100
    assert sum(lines_of_code(text[f]) for f in paper) <= 1370
    assert max(lines[f] for f in sources("arpg_mini")) <= 250
    assert max(lines[f] for f in sources("")) <= 100
    assert max(lines.values()) <= 300
    assert len(README.splitlines()) <= 180
    assert max(len(line) for t in text.values() for line in t.splitlines()) <= 100


PAPER = ("config tokenizer attention control model orders sampling decoding exact training "
         "editing pretrained").split()
LEVELS = {**{f"arpg_mini.{name}": level for level, name in enumerate(PAPER, 1)},
          "arpg_mini": 0, "arpg_mini.data": 20, "arpg_mini.run": 21, "arpg_mini.measure": 22}


def imports(file: str) -> set[str]:
    """The modules that a file imports, anywhere in it, whole names."""
    package = file.rpartition("/")[0].replace("/", ".")
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = importlib.util.resolve_name("." * node.level + (node.module or ""), package
                                               ) if node.level else node.module
            for name in (alias.name for alias in node.names):
                place = ROOT / home.replace(".", "/") / name
                is_module = place.is_dir() or place.with_suffix(".py").exists()
                found.add(f"{home}.{name}" if is_module else home)
    return found


def level(module: str) -> int:
    """How far down the reading order a module stands: the paper's files, then the rooms."""
    return LEVELS.get(module, LEVELS.get(".".join(module.split(".")[:2]), 0))


@pytest.mark.parametrize("file", [f for room in ROOMS for f in sources(room)])
def test_a_file_imports_only_what_stands_above_it(file):
    """A file of the paper imports only files above it in the README's list, never a room. `data`
    imports the paper, `run` also `data`, `measure` also `run`. So a reader never turns back.

    The paper needs torch and numpy only: no pictures, bars, flags, files or processes. (Only
    `pretrained` reads files.)
    """
    module = file.removesuffix(".py").replace("/", ".")
    ours = {m for m in imports(file) if m.split(".")[0] == "arpg_mini"}
    assert all(level(m) < level(module) or (level(m) == level(module) > 19) for m in ours), ours
    if level(module) < 20:
        others = {m.split(".")[0] for m in imports(file) - ours}
        allowed = {"torch", "numpy", "math", "copy", "contextlib", "collections", "dataclasses",
                   "functools", "typing"}
        reads_files = {"re", "argparse", "zipfile", "pathlib"} if "pretrained" in file else set()
        assert others <= allowed | reads_files


def test_the_readme_lists_the_paper_in_reading_order():
    places = [README.index(f"\n  {name}.py ") for name in PAPER]
    assert places == sorted(places)
