"""A run: its description, preparation, processes, training, checkpoints, drawing and plan."""
