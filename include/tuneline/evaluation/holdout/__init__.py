"""The hold-out: proof that training never saw it, and a ledger of every access."""
