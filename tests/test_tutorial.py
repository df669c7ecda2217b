"""The chapters stay correct: examples run, excerpts equal the source, numbers equal the results."""

import doctest
import importlib
import inspect
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.helpers import ROOT

TUTORIAL = ROOT / "tutorial"
CHAPTERS = sorted(TUTORIAL.glob("0*_*.md"))
TEXTS = [*CHAPTERS, TUTORIAL / "README.md", TUTORIAL / "teaching.md", TUTORIAL / "measured.md",
         ROOT / "README.md"]
RESULTS = json.loads((TUTORIAL / "results.json").read_text())


def ids(path):
    return path.name


@pytest.mark.parametrize("chapter", [
    pytest.param(c, marks=[pytest.mark.slow] * (c.name[:2] in ("03", "04", "05")))
    for c in CHAPTERS], ids=ids)
def test_examples_run(chapter, monkeypatch):
    """Runs every `>>>` of a chapter, one after the other, in the root of the repository. Chapters 3
    to 5 run whole properties again, so they are left to the slow run."""
    monkeypatch.chdir(ROOT)
    failed, tried = doctest.testfile(
        str(chapter), module_relative=False, verbose=False,
        optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS | doctest.REPORT_NDIFF)
    assert tried > 5 and not failed


def excerpts(text: str) -> list[tuple[str, str, str]]:
    """(file, name, code) of blocks that begin with ```python arpg_mini/attention.py rotate"""
    return re.findall(r"```python (\S+\.py) (\S+)\n(.*?)```", text, re.S)


def source(file: str, name: str) -> str:
    found = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        found = getattr(found, part)
    return inspect.getsource(inspect.unwrap(found))


def is_excerpt(code: str, whole: str) -> bool:
    """Is it in the source line by line, in one piece? A line `...` skips lines of the source.
    Indentation does not count."""
    def lines(text):
        return [line.strip() for line in text.splitlines() if line.strip()]
    at, whole_lines = 0, lines(whole)
    for piece in re.split(r"^\s*\.\.\.\s*$", code, flags=re.M):
        wanted = lines(piece)
        places = [i for i in range(at, len(whole_lines) - len(wanted) + 1)
                  if whole_lines[i:i + len(wanted)] == wanted]
        if not places:
            return False
        at = places[0] + len(wanted)
    return True


@pytest.mark.parametrize("text", TEXTS, ids=ids)
def test_excerpts_are_the_sources(text):
    for file, name, code in excerpts(text.read_text()):
        assert is_excerpt(code, source(file, name)), f"{text.name}: differs from {file} {name}"


def test_an_excerpt_that_was_changed_is_noticed():
    whole = source("arpg_mini/attention.py", "append")
    body = whole[whole.index("    end ="):]
    assert is_excerpt(whole, whole) and is_excerpt(body, whole)
    first, *_, last = body.strip().splitlines()
    assert is_excerpt(f"{first}\n...\n{last}", whole)
    for wrong in (body.replace("end", "stop"), f"{last}\n...\n{first}", f"{first}\n{last}"):
        assert not is_excerpt(wrong, whole)


def quoted(text: str) -> list[tuple[str, str]]:
    """(number, key) of numbers that name their source: 0.814<!-- key -->"""
    return re.findall(r"(-?[\d][\d,]*\.?\d*)(?: ?%)?<!-- ([\w.]+) -->", text)


@pytest.mark.parametrize("text", TEXTS, ids=ids)
def test_numbers_are_those_of_the_results(text):
    """A quoted number is the value in results.json, rounded to as many digits."""
    for number, key in quoted(text.read_text()):
        assert key in RESULTS, f"{text.name}: {key} is not in results.json"
        digits = len(number.partition(".")[2])
        value = RESULTS[key]["value"]
        shown = float(number.replace(",", ""))
        assert f"{value:.{digits}f}" == f"{shown:.{digits}f}", f"{key} is {value}, not {number}"


def test_results_say_what_made_them():
    for key, result in RESULTS.items():
        assert result["command"] and result["machine"], key


@pytest.mark.parametrize("text", TEXTS, ids=ids)
def test_links_lead_somewhere(text):
    content = text.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", content):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (text.parent / file) if file else text
        assert path.exists(), f"{text.name}: {target}"
        if anchor:
            heads = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-")
                     for h in re.findall(r"^#+ (.*)$", path.read_text(), re.M)]
            assert anchor in heads, f"{text.name}: {target}"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=ids)
def test_a_chapter_has_all_its_parts(chapter):
    heads = re.findall(r"^## (.*)$", chapter.read_text(), re.M)
    wanted = ["What you will be able to do", "What you need", "The picture", "By hand", "The code",
              "A property", "Exercises", "What the paper measured", "An open question",
              "What to read next"]
    assert [h for h in heads if h in wanted] == wanted
    assert re.search(r"\d+ minutes to read, \d+ to run", chapter.read_text())
    assert "](figures/" in chapter.read_text()


def test_every_figure_is_drawn_and_shown():
    """This compares only names. The slow run draws the figures again and compares them."""
    from tutorial.figures import figures
    drawn = {path.stem for path in (TUTORIAL / "figures").glob("*.png")}
    shown = {name for text in TEXTS
             for name in re.findall(r"\]\(figures/(\w+)\.png\)", text.read_text())}
    assert drawn == set(figures()) == shown


@pytest.mark.slow
def test_figures_are_what_their_command_draws(tmp_path, monkeypatch):
    from tutorial import figures
    monkeypatch.setattr(figures, "HERE", tmp_path)
    (tmp_path / "drawn").symlink_to(TUTORIAL / "drawn")
    figures.main([])
    for path in sorted((TUTORIAL / "figures").glob("*.png")):
        old, new = (np.asarray(Image.open(p).convert("RGB"), float)
                    for p in (path, tmp_path / "figures" / path.name))
        assert old.shape == new.shape and np.abs(old - new).mean() < 2, path.name
