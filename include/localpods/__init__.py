"""A one-machine Kubernetes pod API that runs each pod's command as a local process.

The README beside this file says how to start it, which part of the API it serves and what limits
it has.
"""

__version__ = "0.2.0"
