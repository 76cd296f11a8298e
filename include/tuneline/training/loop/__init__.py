"""What the training loop is made of: rows, losses, trainer, callbacks, checkpoints."""
