"""Credentials of Airflow's connections for the library, which knows no Airflow."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.io import get_fs

from tuneline.data.sources import object_stores
from tuneline.store import bucket

_AWS = "aws_default"
# Airflow's own name for a kind of address, and the connection.
_GOOGLE, _AZURE = ("gs", "google_cloud_default"), ("abfs", "wasb_default")
_clients: dict[str, Any] = {}


def take_connections() -> None:
    """Have the library use Airflow's connections in this process."""
    bucket.by_connection = _s3_client
    object_stores.by_connection = _file_system


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


def _file_system(scheme: str) -> Any:
    """Return a file system of fsspec by the connection; None without one or its provider."""
    kind, name = _GOOGLE if scheme == "gs" else _AZURE
    try:
        BaseHook.get_connection(name)
        return get_fs(kind, name)
    except (AirflowNotFoundException, ValueError, ImportError):
        return None
