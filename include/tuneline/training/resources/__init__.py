"""Whether a training fits, how long it takes, what it costs."""
