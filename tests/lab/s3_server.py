"""An S3 server over HTTP, and the environment that leads to it."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest


@contextmanager
def s3(patch: pytest.MonkeyPatch, *buckets: str) -> Iterator[tuple[Any, Any]]:
    """Serve empty buckets within the block; a client, and the server, which may be stopped."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    # The server keeps its state in the process, over all its instances.
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()
    client = boto3.session.Session().client("s3")
    for bucket in buckets:
        client.create_bucket(Bucket=bucket)
    try:
        yield client, server
    finally:
        server.stop()
