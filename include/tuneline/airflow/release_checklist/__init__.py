"""A "Release checklist" tab on a DAG run: the 25 verdicts and their measurements."""
