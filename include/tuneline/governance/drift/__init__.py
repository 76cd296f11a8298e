"""Drift of production prompts and answers, watched night after night.

`compare` is the way in: a reference, the days of a log and the state of the night before give a
report with the state of tonight.
"""
