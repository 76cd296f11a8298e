"""The parts of the DAG files: pods for steps, checks, tasks for people, retry policies."""
