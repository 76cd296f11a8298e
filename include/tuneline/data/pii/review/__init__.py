"""A person's look at scrubbed rows: drawing them, reading what was missed, and the estimate."""
