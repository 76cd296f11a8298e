"""Drift of production prompts and answers, watched night after night; `compare` is the way in."""
