"""The usage ledger: written in batches, summed up by reports."""
