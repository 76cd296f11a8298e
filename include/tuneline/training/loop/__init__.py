"""The parts of the training loop: rows, losses, trainer, callbacks, checkpoints."""
