"""Exercise the probes of an engine against faults."""
