import pytest
from tests.lab.waiting import wait_for

from tuneline.serving.gateway.ledger.writer import BatchWriter, UnfitItem


@pytest.fixture
def disk():
    class Disk:
        full = False
        lines: list[int]

        def write(self, batch: list[int]) -> None:
            if self.full:
                raise OSError("No space left on device")
            self.lines.extend(batch)

    disk = Disk()
    disk.lines = []
    return disk


def test_items_are_written_in_order_and_all_of_them(disk):
    writer = BatchWriter("test", disk.write, limit=10, interval_s=0.01)
    writer.start()
    for i in range(2500):
        writer.put(i)
    assert writer.close(5) == []
    assert disk.lines == list(range(2500))


def test_a_failed_batch_stays_and_is_written_once_the_disk_is_free(disk, monkeypatch):
    monkeypatch.setattr("tuneline.serving.gateway.ledger.writer._RETRY_AFTER_S", 0.02)
    disk.full = True
    writer = BatchWriter("test", disk.write, limit=2, interval_s=0.01)
    writer.start()
    writer.put(1)
    assert not writer.full
    writer.put(2)
    assert writer.full
    wait_for(lambda: writer.error)
    assert "No space" in writer.error
    disk.full = False
    wait_for(lambda: writer.error is None)
    assert writer.close(5) == []
    assert disk.lines == [1, 2]


def test_what_cannot_be_written_is_handed_back(disk):
    disk.full = True
    writer = BatchWriter("test", disk.write, limit=2, interval_s=0.01)
    writer.start()
    writer.put(1)
    assert writer.close(5) == [1]


def test_a_writer_never_started_hands_all_back(disk):
    writer = BatchWriter("test", disk.write, limit=2, interval_s=0.01)
    writer.put(1)
    assert writer.close(5) == [1]


@pytest.mark.parametrize("unfit", [{0}, {2499}, {5, 6, 1700}])
def test_an_unfit_item_is_left_out_alone(disk, unfit):
    def write(batch: list[int]) -> None:
        if unfit & set(batch):
            raise UnfitItem("a number that no column holds")
        disk.write(batch)

    writer = BatchWriter("test", write, limit=10, interval_s=0.01)
    for i in range(2500):
        writer.put(i)
    writer.start()
    assert writer.close(5) == []
    assert disk.lines == [i for i in range(2500) if i not in unfit]
