"""A pod's status names what stood for its image by a digest of the installed packages."""

from pathlib import Path

from tests.lab.pods import Api

from localpods.kubelet import digest_of


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


def test_programs_without_packages_have_no_digest(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    assert digest_of([str(tmp_path / "bin")]) == ""


def test_the_status_of_a_pod_has_it(api: Api) -> None:
    pod = api.run("told", "true")
    assert pod.status.container_statuses[0].image_id.startswith("localpods://sha256:")
