import subprocess
import sys

import pytest

from tuneline.errors import UserError
from tuneline.stack.locks import held

HOLDER = """
import sys
from pathlib import Path
from tuneline.stack.locks import held
with held(Path(sys.argv[1]), "a demo"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    path = tmp_path / "demo.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield path, process


def test_a_second_one_is_refused_with_the_first_ones_process(holder):
    path, process = holder
    refused = pytest.raises(
        UserError, match=rf"a demo is running already \(process {process.pid}\)"
    )
    with refused, held(path, "a demo"):
        pass


def test_the_lock_ends_with_its_holder_however_that_ends(holder):
    path, process = holder
    process.kill()
    process.wait()
    with held(path, "a demo"):
        assert path.exists()


def test_it_can_be_held_again(tmp_path):
    for _ in range(2):
        with held(tmp_path / "a.lock", "a test"):
            pass
