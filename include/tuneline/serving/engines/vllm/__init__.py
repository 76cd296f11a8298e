"""vLLM: its class, its server, and the quantisation of the checkpoints that it loads."""
