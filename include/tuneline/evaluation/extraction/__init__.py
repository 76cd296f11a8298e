"""What the tuned model writes out of its training rows: identifiers, candidates, statistics."""
