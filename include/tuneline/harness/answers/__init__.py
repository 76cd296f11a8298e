"""Judge a model's answers: the task's metric, the score of an answer, and its structure."""

from tuneline.harness.answers.choice import choose_task
from tuneline.harness.answers.structure import canonical, find_object, structure_of
from tuneline.harness.answers.task import Metric, Task

__all__ = [
    "Metric",
    "Task",
    "canonical",
    "choose_task",
    "find_object",
    "structure_of",
]
