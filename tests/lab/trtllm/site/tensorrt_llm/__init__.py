"""Stand-in of the package in NVIDIA's Python; see tests/lab/trtllm."""
