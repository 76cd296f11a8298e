"""Ask the models of a run, and say what their answers are worth."""
