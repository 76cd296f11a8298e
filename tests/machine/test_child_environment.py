"""Child processes find this package whether it is installed or not."""

import subprocess
import sys
from pathlib import Path

import tuneline
from tuneline.machine.child_environment import child_environment


def test_a_child_imports_this_package_before_any_other(tmp_path, monkeypatch):
    other = tmp_path / "tuneline"
    other.mkdir()
    (other / "__init__.py").write_text("raise ImportError('the wrong one')\n")
    (tmp_path / "beside.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = "import beside, os, tuneline; print(tuneline.__file__, os.environ['MORE'])"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment(MORE="yes"),
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == [str(Path(tuneline.__file__)), "yes"]
