"""llama.cpp: engine, native library, server."""
