"""Credentials of Airflow's connections for the library, which knows no Airflow."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from tuneline.store import bucket

_AWS = "aws_default"
_clients: dict[str, Any] = {}


def take_connections() -> None:
    """Have the library use the connection `aws_default` in this process."""
    bucket.by_connection = _s3_client


def _s3_client(config: Any) -> Any:
    """Return a client of S3 by the connection; None without one or without its provider."""
    try:
        connection = BaseHook.get_connection(_AWS)
        from airflow.providers.amazon.aws.hooks.base_aws import AwsGenericHook
    except (AirflowNotFoundException, ImportError):
        return None
    # A client takes half a second, and lasts until the connection changes.
    uri = connection.get_uri()
    if uri not in _clients:
        _clients.clear()
        _clients[uri] = AwsGenericHook(_AWS, client_type="s3", config=config).conn
    return _clients[uri]
