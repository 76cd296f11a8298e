import os
import stat

import pytest

from tuneline.errors import UserError
from tuneline.stack.layout import find_layout
from tuneline.stack.lifecycle import Stack


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    names = "HOME UI_PORT GATEWAY_PORT TRACKING_PORT STORE KUBECONFIG LOG_SAMPLE_RATE"
    for name in names.split():
        monkeypatch.delenv(f"TUNELINE_{name}", raising=False)


def test_the_defaults_are_the_contract():
    layout = find_layout()
    assert (layout.ui_port, layout.gateway_port, layout.tracking_port) == (8080, 8000, 5000)
    assert layout.home == layout.project / ".tuneline"
    assert layout.store == layout.home.as_uri()


def test_the_environment_moves_everything(monkeypatch, tmp_path):
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path))
    monkeypatch.setenv("TUNELINE_STORE", "s3://bucket/x")
    monkeypatch.setenv("TUNELINE_UI_PORT", "18080")
    monkeypatch.setenv("TUNELINE_TRACKING_PORT", "15000")
    layout = find_layout()
    assert layout.airflow_home == tmp_path / "airflow"
    assert layout.store == "s3://bucket/x"
    assert layout.ui_url == "http://localhost:18080"
    assert layout.tracking_url == "http://127.0.0.1:15000"


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1"])
def test_a_port_is_a_number(monkeypatch, port):
    monkeypatch.setenv("TUNELINE_GATEWAY_PORT", port)
    with pytest.raises(UserError, match=r"TUNELINE_GATEWAY_PORT must be a port number"):
        find_layout()


def test_the_share_of_logged_requests_is_a_share(monkeypatch):
    assert find_layout().log_sample_rate == 1.0
    monkeypatch.setenv("TUNELINE_LOG_SAMPLE_RATE", "0.25")
    assert find_layout().log_sample_rate == 0.25
    for wrong in ("half", "-0.1", "1.1", "nan"):
        monkeypatch.setenv("TUNELINE_LOG_SAMPLE_RATE", wrong)
        with pytest.raises(UserError, match=r"TUNELINE_LOG_SAMPLE_RATE must be a share"):
            find_layout()


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_home_is_its_owners_alone(monkeypatch, tmp_path, umask):
    """Also one that an earlier version has made."""
    before = os.umask(umask)
    try:
        for name in ("new", "old"):
            monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / name))
            if name == "old":
                (tmp_path / name).mkdir(mode=0o755)
            with Stack(find_layout(), print).changing():
                assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700
    finally:
        os.umask(before)
