"""A store whose process is killed at one of its operations."""

from typing import Any

_WRITES = {"put_file", "put_bytes", "replace", "delete", "delete_prefix"}
_READS = {"get_file", "get_bytes", "read_tagged", "rehash", "find", "exists", "keys", "entries"}


class Killed(BaseException):
    """Stands for a SIGKILL: no `except Exception` sees it."""


class DyingStore:
    """Pass operations on to a store, and die before or after the n-th of them."""

    def __init__(self, store: Any, number: int, moment: str, *, only_writes: bool = False) -> None:
        self._store, self._left, self._moment = store, number, moment
        self._counted = _WRITES if only_writes else _WRITES | _READS

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in self._counted:
            return found

        def counted(*args: Any, **named: Any) -> Any:
            self._left -= 1
            if self._left == 0 and self._moment == "before":
                raise Killed(name)
            try:
                return found(*args, **named)
            finally:
                # Also where the operation says that there is no such object.
                if self._left == 0:
                    raise Killed(name)

        return counted
