"""What the DAG files are made of: pods for steps, checks, human tasks, retry policies."""
