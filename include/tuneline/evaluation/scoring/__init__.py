"""The hold-out and its ledger, and models scored on it or on other rows of a dataset."""
