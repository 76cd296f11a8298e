"""What others rely on, recorded as JSON; `TUNELINE_RECORD=1` writes it anew."""

import json
import os
from pathlib import Path

import pytest
from tests.governance.conftest import finished_lab, make_lab, random_base  # noqa: F401


@pytest.fixture
def recorded():
    """Compare a document with the recorded one of a name."""

    def compare(name, document):
        path = Path(__file__).with_name(f"{name}.json")
        if os.environ.get("TUNELINE_RECORD"):
            parts = [
                f" {json.dumps(part)}: {{\n"
                + ",\n".join(
                    f"  {json.dumps(key)}: {json.dumps(fact)}" for key, fact in facts.items()
                )
                + "\n }"
                for part, facts in document.items()
            ]
            path.write_text("{\n" + ",\n".join(parts) + "\n}\n")
        assert document == json.loads(path.read_text())

    return compare
