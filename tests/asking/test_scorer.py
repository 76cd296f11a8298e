"""A team's own command judges answers; what it writes wrongly is refused."""

import json
import re
import sys
from pathlib import Path

import pytest

from tuneline.asking.scorer import scores_by
from tuneline.asking.tasks import further_tasks, judge, task_of
from tuneline.config import build_config
from tuneline.errors import UserError

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"
ROWS = [([{"role": "user", "content": "How süß?"}], "a b", "a b"), ([], "a", "b"), ([], "a", "")]
READ = "import json, os, sys\nrows = [json.loads(line) for line in sys.stdin]\n"


def command(tmp_path, body):
    path = tmp_path / "score.py"
    path.write_text(READ + body)
    return [sys.executable, str(path)]


def test_a_command_sees_question_and_answers_and_scores_them(tmp_path):
    body = "for r in rows: print(sum(r['messages'] != [] and r[k] == 'a b' for k in r) / 2)"
    assert scores_by(command(tmp_path, body), ROWS) == (1.0, 0.0, 0.0)


def test_no_command_sees_a_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    body = "for r in rows: print(int('AWS_SECRET_ACCESS_KEY' in os.environ))"
    assert scores_by(command(tmp_path, body), ROWS) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("print(1)", r"wrote 1 lines for 3 rows"),
        ("for r in rows: print(1.5)", r"must write a number from 0 to 1"),
        ("for r in rows: print(float('nan'))", r"must write a number from 0 to 1"),
        ("print('1\\n1\\ngood')", r"must write a number from 0 to 1"),
        ("sys.exit(3)", r"ended with exit code 3; see the log"),
    ],
)
def test_what_is_no_score_is_refused(tmp_path, body, why):
    with pytest.raises(UserError, match=why):
        scores_by(command(tmp_path, body), ROWS)


def test_a_command_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"'score-it' can't be started .*pods\.image"):
        scores_by(["score-it"], ROWS)


def test_a_command_and_its_metric_stand_together():
    for given in ({"scorer": ["a"]}, {"metric": "scorer"}, {"scorer": ["a"], "metric": "chrf"}):
        with pytest.raises(UserError, match="metric: scorer and the command of scorer together"):
            build_config({"data": {"source": "x"}, "evaluation": given})


def example(name):
    """An example of the page, as it is printed there."""
    block = re.search(rf"```python\n# {name}\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return block.group(1)


def test_the_example_of_the_page_judges_by_a_schema(tmp_path):
    script = tmp_path / "score.py"
    script.write_text(example("score.py"))
    (tmp_path / "schema.json").write_text(json.dumps({"required": ["sql"], "type": "object"}))
    called = [sys.executable, str(script), str(tmp_path / "schema.json")]
    settings = {"metric": "scorer", "scorer": called}
    config = build_config({"data": {"source": "x"}, "evaluation": settings})
    expected = ['{"sql": "select"}'] * 3
    task = task_of(config, expected)
    assert further_tasks(task, expected) == ([], [])
    given = ['{"sql": "drop"}', "select", '{"text": 1}']
    judged = judge(task, given, expected, questions=[[]] * 3)
    assert (judged.task.name, judged.scores) == ("score of evaluation.scorer", (1.0, 0.0, 0.0))
    assert judged.other(given[::-1]).scores == (0.0, 0.0, 1.0)
    assert judged.rows([True, False, True]).other(given[:2]).scores == (1.0, 0.0)
