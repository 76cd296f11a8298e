"""Scrubbers of the gateway's log that fail at a text with personal data, each in another way."""

import os
import time


def raises(turns):
    """Raise an error that holds the text."""
    if _is_personal(turns):
        raise ValueError(turns)
    return turns, {}


def dies(turns):
    """End the process."""
    if _is_personal(turns):
        os._exit(1)
    return turns, {}


def hangs(turns):
    """Take longer than a test."""
    if _is_personal(turns):
        time.sleep(600)
    return turns, {}


def _is_personal(turns):
    return any("@" in turn["content"] for turn in turns)
