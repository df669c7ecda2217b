"""All mistakes, by room."""

from tests.mutants.catalogue import MUTANTS
from tests.mutants.data import DATA
from tests.mutants.exact import EXACT
from tests.mutants.scores import SCORES
from tests.mutants.training import TRAINING

ROOMS = {"model and decoding": MUTANTS, "exact decoding": EXACT, "training": TRAINING,
         "data and files": DATA, "editing and scores": SCORES}
