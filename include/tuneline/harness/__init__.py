"""Ask models and judge their answers: what evaluation, deployment and governance share."""
