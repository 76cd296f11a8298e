"""Tuneline: from raw instruction data to a served, fine-tuned LLM."""

__version__ = "0.1.0"

# The version of the seam between a DAG and the image that runs its steps:
# a step refuses a DAG that was written for another one.
CONTRACT_VERSION = "1"
