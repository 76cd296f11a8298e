"""GGUF files: written from a checkpoint, quantised, with their tokenizer and LoRA adapters."""
