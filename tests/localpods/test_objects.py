"""Selectors of labels and fields, quantities, and what stands for the digest of an image."""

from decimal import Decimal
from pathlib import Path

import pytest

from localpods.collection import Selector
from localpods.kubelet import digest_of
from localpods.objects import ApiError, parse_quantity


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
    assert selected("", no)
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
    for text in ("spec.image=x", "metadata.name", "metadata.labels.a=b"):
        with pytest.raises(ApiError):
            Selector(fields=text)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("500m", Decimal("0.5")),
        (2, Decimal(2)),
        ("0.25", Decimal("0.25")),
        (".5", Decimal("0.5")),
        ("2Gi", Decimal(2 << 30)),
        ("1.5Ki", Decimal(1536)),
        ("3M", Decimal(3_000_000)),
        ("1e3", Decimal(1000)),
        ("1E", Decimal(10) ** 18),
    ],
)
def test_quantity(text: object, amount: Decimal) -> None:
    assert parse_quantity(text) == amount


@pytest.mark.parametrize("text", ["", "lots", "1 Gi", "-1", "1gi", "1e", None, "0x10"])
def test_what_is_no_quantity(text: object) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)


def install(folder: Path, name: str, record: str) -> None:
    site = folder / "lib/python3.11/site-packages"
    (site / f"{name}.dist-info").mkdir(parents=True)
    (site / f"{name}.dist-info/RECORD").write_text(record)


def test_other_packages_or_other_files_are_another_digest(tmp_path: Path) -> None:
    made = []
    for number, (name, record) in enumerate(
        [("a-1.0", "a.py,sha256=x,1"), ("a-1.0", "a.py,sha256=x,1"), ("a-1.1", "a.py,sha256=x,1")]
    ):
        folder = tmp_path / str(number)
        install(folder, name, record)
        made.append(digest_of([str(folder / "bin")]))
    assert made[0] == made[1] != made[2]
    assert made[0].startswith("localpods://sha256:")
    install(tmp_path / "0", "b-1.0", "b.py,sha256=y,1")
    assert digest_of([str(tmp_path / "0/bin")]) != made[0]
    # Programs without packages have none.
    (tmp_path / "bin").mkdir()
    assert digest_of([str(tmp_path / "bin")]) == ""
