"""`tuneline run all`: which steps a call carries out, and what ends it."""

import pytest
from tests.lab.runs import Lab

from tuneline.catalogue import get_step
from tuneline.cli import parser, whole_run
from tuneline.errors import EXIT_FAILED, EXIT_OK, EXIT_RETRY, EXIT_USER, UserError
from tuneline.evidence import measure
from tuneline.verdicts import status

CRITICAL, OPTIONAL, LAST = "license_audit", "cost_tracking", "promote"


class Steps:
    """Three steps that leave what a test wants, in place of their processes."""

    def __init__(self, lab):
        self._lab = lab
        self.codes, self.holds, self.carried_out = {}, {}, []

    def __call__(self, run, *command):
        step = command[-1]
        self.carried_out.append(step)
        if not (code := self.codes.get(step, EXIT_OK)):
            rows = measure("rows", 0, "rows", "<=", 0 if self.holds.get(step, True) else -1)
            self._lab.leave(step, {}, [rows])
        return code

    def call(self):
        """Call the command; its exit code and the steps that it carried out."""
        self.carried_out.clear()
        return whole_run.run_all(self._lab.run), self.carried_out


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path, {})


@pytest.fixture
def steps(lab, monkeypatch):
    made = Steps(lab)
    monkeypatch.setattr(whole_run, "RUN_ORDER", list(map(get_step, (CRITICAL, OPTIONAL, LAST))))
    monkeypatch.setattr(whole_run, "_carry_out", made)
    return made


def test_a_second_call_goes_on_after_what_is_done(steps):
    steps.codes[LAST] = EXIT_FAILED
    assert steps.call() == (EXIT_FAILED, [CRITICAL, OPTIONAL, LAST])
    steps.codes.clear()
    assert steps.call() == (EXIT_OK, [LAST])


def test_a_second_call_measures_again_what_stopped_the_first(steps):
    steps.holds[CRITICAL] = False
    assert steps.call() == (EXIT_FAILED, [CRITICAL])
    assert steps.call() == (EXIT_FAILED, [CRITICAL])
    steps.holds.clear()
    assert steps.call() == (EXIT_OK, [CRITICAL, OPTIONAL, LAST])


@pytest.mark.parametrize("code", [EXIT_RETRY, EXIT_FAILED, -9])
def test_a_run_goes_on_without_an_optional_item_that_breaks(steps, lab, code):
    steps.codes[OPTIONAL] = code
    assert steps.call() == (EXIT_OK, [CRITICAL, OPTIONAL, LAST])
    assert f"exit code {code}" in status(lab.run, OPTIONAL).summary
    # It is tried again by the next call.
    steps.codes.clear()
    assert steps.call() == (EXIT_OK, [OPTIONAL, LAST])
    assert status(lab.run, OPTIONAL).verdict == "pass"


@pytest.mark.parametrize(
    ("step", "code", "ends"),
    [
        (CRITICAL, EXIT_RETRY, EXIT_RETRY),
        (CRITICAL, -9, EXIT_FAILED),
        (OPTIONAL, EXIT_USER, EXIT_USER),
    ],
)
def test_the_exit_code_of_a_step_that_ends_the_run(steps, step, code, ends):
    steps.codes[step] = code
    assert steps.call()[0] == ends


def test_a_run_that_needs_people_is_refused_and_leaves_nothing(tmp_path):
    rows, settings, store = (tmp_path / name for name in ("rows.jsonl", "settings.yaml", "store"))
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    settings.write_text("approval: true\n")
    words = ["run", "all", "--store", store.as_uri(), "--data", rows, "--config", settings]
    arguments = parser().parse_args(list(map(str, words)))
    with pytest.raises(UserError, match=r"needs answers of people \(approval\)"):
        arguments.command(arguments)
    assert not store.exists()
