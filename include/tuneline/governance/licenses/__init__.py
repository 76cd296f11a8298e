"""Which licence allows which use."""
