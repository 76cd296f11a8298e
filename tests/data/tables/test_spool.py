from tuneline.data.conversations.outcomes import Outcome
from tuneline.data.tables.spool import Spool


def test_batches_come_back_in_order_any_number_of_times(tmp_path):
    spool: Spool[Outcome] = Spool(tmp_path / "spool")
    assert list(spool) == []
    batches = [
        [Outcome("a", "f", 1, "raw \ud800", own_holdout=False, messages=[{"role": "user"}])],
        [],
        [Outcome("b", "f", 2, "", own_holdout=True, reason="code: why")] * 2,
    ]
    for batch in batches:
        spool.add(batch)
    assert list(spool) == batches
    assert list(spool) == batches
