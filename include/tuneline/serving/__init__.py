"""Serving: engines behind one interface, a client for them, and the gateway in front."""
