"""How good and how fast: judges, distances, scores of editing, benchmarks."""
