"""Time and money of a training run: estimated, tracked and limited."""
