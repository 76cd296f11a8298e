"""Label and field selectors."""

import pytest

from localpods.collection import Selector
from localpods.objects import ApiError


def selected(selector: str, labels: dict[str, str] | None) -> bool:
    return Selector(selector).matches({"metadata": {"labels": labels}})


@pytest.mark.parametrize(
    ("selector", "yes", "no"),
    [
        ("a=b", {"a": "b", "c": "d"}, {"a": "c"}),
        ("a==b", {"a": "b"}, {}),
        ("a = b", {"a": "b"}, {"b": "a"}),
        ("a!=b", {"a": "c"}, {"a": "b"}),
        ("a!=b", {}, {"a": "b"}),
        ("a=", {"a": ""}, {"a": "b"}),
        ("a", {"a": "anything"}, {"b": "a"}),
        ("!a", {"b": "a"}, {"a": ""}),
        ("a in (b, c)", {"a": "c"}, {"a": "d"}),
        ("a notin (b,c)", {"a": "d"}, {"a": "b"}),
        ("a notin (b,c)", {}, {"a": "c"}),
        ("a=b,c in (d,e),!f", {"a": "b", "c": "e"}, {"a": "b", "c": "e", "f": ""}),
        ("k8s.io/in-x=in", {"k8s.io/in-x": "in"}, {"k8s.io/in-x": "notin"}),
        ("run_id=m__1,already_checked!=True,!airflow-worker", {"run_id": "m__1"}, {"run_id": "2"}),
    ],
)
def test_label_selector(selector: str, yes: dict[str, str], no: dict[str, str]) -> None:
    assert selected(selector, yes)
    assert not selected(selector, no)


def test_empty_selector_selects_everything() -> None:
    assert selected("", {"a": "b"})
    assert selected(" ", None)


@pytest.mark.parametrize("selector", ["a=b=c", "a in b", "=", "a b", "a,,b", "a=b,", "!=b", "a>1"])
def test_what_cannot_be_read_is_refused(selector: str) -> None:
    with pytest.raises(ApiError) as caught:
        Selector(selector)
    assert caught.value.code == 400


def test_field_selector() -> None:
    pod = {"metadata": {"name": "x", "namespace": "n"}, "status": {"phase": "Running"}}
    for text, expected in [
        ("metadata.name=x", True),
        ("metadata.name==x,status.phase!=Failed", True),
        ("status.phase=Failed", False),
        ("status.phase!=Running", False),
        # Not set counts as empty.
        ("spec.nodeName=", True),
    ]:
        assert Selector(fields=text).matches(pod) is expected, text


@pytest.mark.parametrize("text", ["spec.image=x", "metadata.name", "metadata.labels.a=b"])
def test_unsupported_field_is_refused(text: str) -> None:
    with pytest.raises(ApiError):
        Selector(fields=text)
