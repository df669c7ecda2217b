"""Hypothesis profiles: `--hypothesis-profile thorough` runs five times the examples."""

import torch
from hypothesis import settings

settings.register_profile("thorough", max_examples=500)
threads = torch.get_num_threads()


def pytest_runtest_setup(item):
    """Products of 3×8 matrices only lose by being shared among threads, most of all on a machine
    that has other work."""
    torch.set_num_threads(1 if item.get_closest_marker("equivalence") else threads)
