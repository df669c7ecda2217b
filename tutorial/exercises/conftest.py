"""Find the answers to grade: `python -m pytest tutorial/exercises [--answers FOLDER]`."""

import importlib.util
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_addoption(parser):
    parser.addoption("--answers", default=HERE, type=Path,
                     help="folder of answers, ch03_attention.py and so on (default: the exercises)")


@pytest.fixture
def answers(request):
    """answers("rotate") is the object named `rotate` in the chapter's file of answers."""
    folder, chapter = request.config.getoption("--answers"), request.module.CHAPTER
    file = folder / f"{chapter}.py"
    if not file.is_file():
        pytest.fail(f"{file}: no such file; --answers takes a folder with {chapter}.py in it",
                    pytrace=False)
    spec = importlib.util.spec_from_file_location(f"answers_{chapter}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SystemExit:
        pytest.fail(f"{file}: can't be imported: it calls sys.exit() or raises SystemExit; remove "
                    "that", pytrace=False)
    except Exception as error:
        pytest.fail(f"{file}: can't be imported: {type(error).__name__}: {error}", pytrace=False)

    def find(name: str):
        if not hasattr(module, name):
            pytest.fail(f"{file}: does not define {name}; keep the names of the exercise",
                        pytrace=False)
        return getattr(module, name)
    return find
