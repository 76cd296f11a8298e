"""`python -m tests.lab.served_gateway FOLDER`: a gateway in front of a small server.

Writes its address and key to standard output as JSON, and runs until its standard input ends.
For tests of environments in which the gateway can't be imported.
"""

import json
import sys
from pathlib import Path

import yaml
from tests.lab.upstream_server import ServerThread, UpstreamServer

from tuneline.serving.gateway.accounts.keys import add_key
from tuneline.serving.gateway.app.routes import create_app
from tuneline.serving.gateway.config import load_config


def main(folder: Path) -> None:
    """Serve `support` until the input ends."""
    server = UpstreamServer("small")
    upstream = {"name": "small", "base_url": server.base_url, "model": "small-model"}
    config = {
        "keys_file": "keys.json",
        "ledger": {"path": "usage.db", "flush_interval_s": 0.02},
        "upstreams": [{**upstream, "ping": False}],
        "models": [{"id": "support", "chain": ["small"]}],
    }
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(config))
    key = add_key(folder / "keys.json", "airflow")
    thread = ServerThread(create_app(load_config(path)))
    print(json.dumps({"url": thread.url, "key": key}), flush=True)
    sys.stdin.read()
    thread.stop()
    server.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
