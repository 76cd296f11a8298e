"""Objects on Google Cloud Storage and Azure Blob Storage, read by fsspec."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tuneline.errors import RetryableError, UserError
from tuneline.store import NotThere

# The extra of the package that reads each kind of address.
EXTRAS = {"gs": "gcs", "az": "azure", "abfs": "azure"}
_CREDENTIALS = {
    "gcs": "set GOOGLE_APPLICATION_CREDENTIALS, or in Airflow the connection google_cloud_default",
    "azure": "set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and "
    "AZURE_STORAGE_ACCOUNT_KEY, or in Airflow the connection wasb_default",
}
# Without a status: of fsspec, then of the clients, which find no credentials or wrong ones.
_REFUSALS = ("PermissionError", "ValueError", "Error", "DefaultCredentialsError")
T = TypeVar("T")

# Makes a file system for a kind of address, None without a connection; Airflow's processes set it.
by_connection: Callable[[str], Any] | None = None


def lacks(address: str, extra: str) -> UserError:
    """Return the error for an address that needs a package which is not installed."""
    return UserError(
        f"{address} needs packages that are not installed; install tuneline[{extra}], in an image "
        f"with --build-arg EXTRAS=requirements/{extra}.txt"
    )


class ObjectStore:
    """A bucket or container that other programs write; its methods are those of `S3Store`."""

    def __init__(self, scheme: str, bucket: str) -> None:
        self.uri = f"{scheme}://{bucket}"
        self._extra = EXTRAS[scheme]
        self._fs: Any = self._call("", partial(_file_system, scheme, self.uri))
        self._root = self._fs._strip_protocol(self.uri)

    def uri_of(self, key: str) -> str:
        """Return the full address of a key."""
        return f"{self.uri}/{key}" if key else self.uri

    def tag(self, key: str) -> str:
        """Return the generation or the ETag of an object, which changes with its bytes."""
        found = self._call(key, lambda: self._fs.info(self._path(key)))
        if found["type"] == "directory":
            raise NotThere(f"{self.uri_of(key)} is a folder")
        return "etag:" + str(found.get("generation") or found["etag"]).strip('"')

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a prefix that ends at a path boundary, in order."""
        found = self._call(prefix, lambda: self._fs.find(self._path(prefix)))
        return (path[len(self._root) + 1 :] for path in found)

    def get_foreign(self, key: str, destination: Path) -> None:
        """Copy an object to a local file."""
        self._call(key, partial(self._fs.get_file, self._path(key), str(destination)))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _call(self, key: str, action: Callable[[], T]) -> T:
        """Run a call of fsspec and translate its errors, whose texts may hold credentials."""
        subject = self.uri_of(key)
        try:
            return action()
        except ImportError:
            raise lacks(subject, self._extra) from None
        except Exception as error:
            status = getattr(error, "status_code", None) or getattr(error, "code", None)
            kind = type(error).__name__
        if status == 404 or kind == "FileNotFoundError":
            raise NotThere(f"{subject} does not exist; check bucket and key")
        if status in (401, 403) or kind in _REFUSALS:
            raise UserError(
                f"{subject}: access denied ({status or kind}); {_CREDENTIALS[self._extra]}"
            )
        raise RetryableError(f"{subject}: the server failed ({status or kind})")


def _file_system(scheme: str, uri: str) -> Any:
    """Return a file system that asks the server each time, by a connection or the environment."""
    from fsspec.core import url_to_fs

    found = by_connection(scheme) if by_connection else None
    return found or url_to_fs(uri, use_listings_cache=False, skip_instance_cache=True)[0]
