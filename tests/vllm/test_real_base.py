"""The real base model of the laptop preset answers through vLLM as in transformers."""

import pytest
from tests.lab.tiny_models import base_model
from tests.vllm.reference import generated, request, served, share_equal

from tuneline.serving.engines.vllm.engine import VllmServer

ROWS, TOKENS = 20, 24
TOPICS = ("a refund", "a lost parcel", "a broken login", "an invoice", "a new address")


@pytest.mark.model
def test_it_answers_as_in_transformers():
    folder = base_model().path
    asked = [
        [{"role": "user", "content": f"Question {number}: what should I do about {topic}?"}]
        for number in range(ROWS // len(TOPICS))
        for topic in TOPICS
    ]
    expected = generated(folder, asked, TOKENS)
    with VllmServer(request(folder, parallel=4, context_tokens=1024)) as server:
        assert share_equal(served(server, asked, max_tokens=TOKENS), expected) >= 0.99
