"""Scrubbers of the gateway's log that fail at a text with personal data, each in another way."""

import os
import time


def raises(batch):
    """Raise an error that holds the text."""
    if _is_personal(batch):
        raise ValueError(batch)
    return [(turns, {}) for turns in batch]


def dies(batch):
    """End the process."""
    if _is_personal(batch):
        os._exit(1)
    return [(turns, {}) for turns in batch]


def hangs(batch):
    """Take longer than a test."""
    if _is_personal(batch):
        time.sleep(600)
    return [(turns, {}) for turns in batch]


def _is_personal(batch):
    return any("@" in turn["content"] for turns in batch for turn in turns)
