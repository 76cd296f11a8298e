"""Traffic that goes wrong, and the ledger that has to bill it right all the same."""
