"""The limits of what a client may send, and of how long it may take."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tuneline.config.section import Section

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class LimitsConfig(Section):
    """What a client may send, and how long it may take."""

    connections: int = Field(
        4_096,
        ge=1,
        description="Connections at once, as far as the process may open files; a new one closes "
        "an idle one.",
    )
    header_bytes: int = Field(
        32_768, ge=1_024, le=1 << 20, description="Largest request line with all headers."
    )
    header_timeout_s: Seconds = Field(
        10.0, description="Time for the request line and the headers, from the first byte on."
    )
    body_timeout_s: Seconds = Field(30.0, description="Time for the body.")
    idle_timeout_s: Seconds = Field(
        75.0, description="Time that a connection without a request is kept open."
    )
    write_timeout_s: Seconds = Field(
        60.0, description="Longest time that a client may stop reading its answer."
    )
    json_depth: int = Field(
        64, ge=8, le=512, description="How deep lists and objects of a body may be nested."
    )
    json_values: int = Field(
        20_000, ge=100, description="Lists, objects and fields that a body may have."
    )
