"""Live tracking of a training run, in MLflow, in Weights & Biases, in both or in neither."""
