"""Short trials of LoRA ranks, and the choice between them."""
