import os

import pytest

from tuneline.errors import UserError
from tuneline.serving.processes import free_port
from tuneline.stack.ports import is_free, require_free


def test_a_taken_port_is_named_with_its_holder_and_the_way_out(taken):
    assert not is_free(taken)
    with pytest.raises(UserError) as refusal:
        require_free(taken, "the gateway", "TUNELINE_GATEWAY_PORT")
    message = str(refusal.value)
    assert f"port {taken} for the gateway is taken by" in message
    assert f"process {os.getpid()}" in message
    assert "TUNELINE_GATEWAY_PORT=" in message


def test_a_picked_port_is_free():
    port = free_port()
    assert is_free(port)
    require_free(port, "a test", "X")
