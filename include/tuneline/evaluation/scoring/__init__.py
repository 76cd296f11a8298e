"""Score any model on the training or validation rows of a dataset, outside of a run."""
