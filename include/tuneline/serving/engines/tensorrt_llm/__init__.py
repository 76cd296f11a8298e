"""TensorRT-LLM: engine builds and the PyTorch backend."""
