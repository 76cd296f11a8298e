"""The fields of a request that is answered with an adapter which an engine serves beside a base."""

from __future__ import annotations

from typing import Any


def adapter_fields(adapter: int | str | None) -> dict[str, Any]:
    """Return the fields that choose an adapter.

    Args:
        adapter: its place among the adapters of a llama.cpp server, from 0, or its name, which
            vLLM lists among its models; None asks the base.
    """
    if adapter is None:
        return {}
    if isinstance(adapter, str):
        return {"model": adapter}
    # llama.cpp scales every adapter that is not named to zero.
    return {"lora": [{"id": adapter, "scale": 1.0}]}
