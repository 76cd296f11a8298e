"""The chain of upstreams that answers a request."""
