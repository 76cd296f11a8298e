"""docs/air-gapped.md, followed: collected with a network, installed and tried without one."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "air-gapped.md").read_text()
# With its own loopback, and nothing else.
APART = ["unshare", "--map-root-user", "--net", "bash", "-euc"]
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        subprocess.run([*APART, "true"], check=False, capture_output=True).returncode != 0,
        reason="this user may make no network namespace",
    ),
]


def commands(title):
    """The commands of the block that a comment names."""
    (found,) = re.findall(rf"```bash\n# {title}\n(.*?)```", PAGE, re.DOTALL)
    return found


def test_the_page_installs_and_prepares_data_without_a_network(tmp_path):
    bundle = tmp_path / "bundle"
    environment = {**os.environ, "BUNDLE": str(bundle)}
    collect = ["bash", "-euc", commands("collect")]
    subprocess.run(collect, cwd=ROOT, env=environment, check=True)
    # Neither a cache nor a folder of this machine's pip helps.
    mine = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}
    mine |= {"TUNELINE_CACHE": str(tmp_path / "cache")}
    script = "\n".join(["ip link set lo up", commands("install"), commands("try")])
    reached = subprocess.run([*APART, "getent hosts example.com"], check=False, capture_output=True)
    assert reached.returncode != 0
    subprocess.run([*APART, script], cwd=tmp_path, env={**environment, **mine}, check=True)
    prepared = tmp_path / "tuneline" / "prepared"
    assert (prepared / "dataset.parquet").is_file()
    assert (prepared / "quarantine" / "rejected.parquet").is_file()
    shutil.rmtree(tmp_path / "tuneline")
