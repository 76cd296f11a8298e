"""Usage of gateways that are not ours, taken into the ledger and the production log."""
