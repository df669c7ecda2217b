"""Hypothesis profiles: `--hypothesis-profile thorough` runs five times the examples."""

from hypothesis import settings

settings.register_profile("thorough", max_examples=500)
