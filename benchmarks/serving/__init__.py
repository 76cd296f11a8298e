"""Peers and upstreams of the gateway benchmark."""
