"""What data items take out: how much, why, from which classes, and what to set instead."""
