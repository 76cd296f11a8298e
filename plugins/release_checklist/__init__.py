"""A "Release checklist" tab on a DAG run: the 25 verdicts and what they rest on."""
