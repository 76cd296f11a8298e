"""General questions, and texts, that show what a model has kept of its general ability.

All are written for this project. `load_questions` gives the short ones, whose answers are
generated. `load_suite` gives all of them: short ones, choices between whole answers by their
likelihood, and instructions with constraints that can be checked. A small instruct model answers
a middling share, so that a loss shows as well as a gain.
"""

from __future__ import annotations

from tuneline.harness.general_questions.checks import CHECKS
from tuneline.harness.general_questions.question import Question, check_answer
from tuneline.harness.general_questions.suite import load_suite
from tuneline.harness.general_questions.tables import paragraphs
from tuneline.harness.general_questions.tables import short_questions as load_questions

__all__ = ["CHECKS", "Question", "check_answer", "load_questions", "load_suite", "paragraphs"]
