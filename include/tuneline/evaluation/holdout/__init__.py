"""The hold-out: proof that training never saw it, its ledger, and the released model on it."""
