"""Several pods answer one hold-out as one does; a part with a fault is refused."""

import json

import pytest
from tests.lab.nights import release
from tests.lab.runs import Lab, dataset_rows, values
from tests.lab.tiny_task import conversation, task_rows

from tuneline.artifacts.evaluation import holdout_part
from tuneline.asking import asking
from tuneline.cli import main
from tuneline.errors import EXIT_USER, UserError
from tuneline.evaluation.scoring.ledger import read_ledger
from tuneline.serving.client import EngineError
from tuneline.store import sha256_file
from tuneline.verdicts import status

ITEM, SPLITS = "holdout_performance", {"train": 24, "validation": 6, "holdout": 15}
LEFT = ("answers.jsonl", "answers.parquet", "fair_base_answers.jsonl", "released_answers.jsonl")


@pytest.fixture
def sent(monkeypatch):
    """Prompts that were really sent to an engine."""
    asked, whole = [], asking.EngineClient.complete_batch

    def noting(self, batch, **options):
        asked.extend(prompt[-1]["content"] for prompt in batch)
        return whole(self, batch, **options)

    monkeypatch.setattr(asking.EngineClient, "complete_batch", noting)
    return asked


@pytest.fixture
def another_machine(monkeypatch, tmp_path_factory):
    """Forget what this machine has kept: a pod finds nothing that others have left on a disk."""
    monkeypatch.setenv("TUNELINE_THREADS", "1")
    return lambda: monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path_factory.mktemp("machine")))


@pytest.fixture
def answered_by(tiny_models, tmp_path, another_machine):
    """Make a run after a release and, unless told otherwise, let each of its pods answer."""

    def make(shards, *, answer=True, engine="llama_cpp"):
        settings = {
            "base_model": str(tiny_models.base),
            "evaluation": {"shards": shards, "max_new_tokens": 48},
        }
        folder = tmp_path / f"{shards}-{engine}"
        earlier = Lab(folder, settings, "night-1")
        earlier.leave_dataset(dataset_rows({"train": 9}, lambda n: conversation(5000 + n)))
        # Other bytes than the base's, though what they state is the same.
        served = folder / "served.gguf"
        served.write_bytes(tiny_models.base_gguf.read_bytes() + b"\0")
        release(earlier, {"model.gguf": served}, engine=engine)
        lab = Lab(folder, settings)
        lab.leave_dataset(task_rows(SPLITS))
        lab.leave_shipped(tiny_models.candidate_gguf)
        for shard in range(shards if answer and shards > 1 else 0):
            assert answer_part(lab, shard, another_machine) == 0
        another_machine()
        return lab

    return make


def answer_part(lab, shard, another_machine):
    another_machine()
    return main(["run", "answer", "--shard", str(shard), "--run", lab.run.uri])


def test_shards_give_the_answers_of_one_server(answered_by, sent):
    found, asked = {}, {}
    for shards in (1, 2, 3):
        lab = answered_by(shards)
        before, dealt = len(sent), sorted(sent)
        evidence = lab.execute(ITEM)
        found[shards] = [sha256_file(lab.artifact(ITEM, name)) for name in LEFT]
        asked[shards] = sorted(sent)
        assert values(evidence).get("holdout_shards") == (shards if shards > 1 else None)
        if shards > 1:
            # All is answered by the pods, each row once; the item itself starts no engine.
            assert len(sent) == before
            assert dealt == asked[1]
            sizes = [len(holdout_part(n).find(lab.run).answers) for n in range(shards)]
            assert sizes == [4] * shards
            names = {ref.name for ref in evidence.inputs}
            assert {f"part-{n}.json" for n in range(shards)} <= names
        [held] = {m.value for m in evidence.measurements if m.name == "holdout_sha256"}
        looks = read_ledger(lab.run.store, held)
        pods = [f"answer_holdout[{n}]" for n in range(shards)] if shards > 1 else []
        assert [look.step for look in looks] == [*pods, ITEM]
        sent.clear()
    assert found[1] == found[2] == found[3]
    # Candidate, base, base with examples, released model.
    assert len(asked[1]) == 4 * SPLITS["holdout"]


def test_a_pod_that_failed_asks_only_the_rest_on_another_machine(
    answered_by, another_machine, sent, monkeypatch, capsys
):
    lab = answered_by(2, answer=False)
    whole = asking.EngineClient.complete_batch
    monkeypatch.setattr(asking, "CHUNK", 3)

    def dies(self, batch, **options):
        if len(sent) >= 6:
            raise EngineError("the engine died")
        return whole(self, batch, **options)

    monkeypatch.setattr(asking.EngineClient, "complete_batch", dies)
    assert answer_part(lab, 1, another_machine) != 0
    monkeypatch.setattr(asking.EngineClient, "complete_batch", whole)
    assert answer_part(lab, 0, another_machine) == 0
    assert len(sent) == 6 + 4 * 8
    assert "shard 0 of 2: 32 answers" in capsys.readouterr().out
    # The whole run would go on: its other pod has answered, so that this one alone is tried again.
    with pytest.raises(UserError, match=r"shard 1 of the hold-out has not been answered; clear"):
        lab.execute(ITEM)
    assert answer_part(lab, 1, another_machine) == 0
    assert len(sent) == 4 * SPLITS["holdout"]
    lab.execute(ITEM)
    assert len(sent) == 4 * SPLITS["holdout"]


def rows_of(part, who):
    return part["answers"][who]["rows"]


def test_a_part_with_a_fault_is_refused(answered_by, tiny_models, another_machine, capsys):
    lab = answered_by(2)
    key = holdout_part(1).key(lab.run)
    good = lab.run.store.get_bytes(key)
    other = json.loads(lab.run.store.get_bytes(holdout_part(0).key(lab.run)))
    tuned, twice = "tuned model", "has twice, or from another shard, rows of the tuned model"

    def of(at, value):
        return lambda part: part["of"].__setitem__(at, value)

    faults = {
        r"lacks rows of the tuned model: row-\d+;": lambda part: rows_of(part, tuned).pop(2),
        "lacks rows of the released model": lambda part: rows_of(part, "released model").pop(),
        rf"{twice}: row-\d+;": lambda part: rows_of(part, tuned).append(rows_of(part, tuned)[0]),
        twice: lambda part: rows_of(part, tuned).append(rows_of(other, tuned)[0]),
        "has no base model with the": lambda part: part["answers"].pop("base model"),
        r"was answered for \('file:///elsewhere": of(0, "file:///elsewhere"),
        r"was answered for \(.*'0000": of(1, "0" * 64),
        r"was answered for \(.*, 0, 2\)": of(2, 0),
        r"was answered for \(.*, 1, 3\)": of(3, 3),
    }
    for said, plant in faults.items():
        part = json.loads(good)
        plant(part)
        lab.run.store.put_bytes(key, json.dumps(part).encode())
        # As the pod of the step does it: a refusal is evidence, and the user's error.
        assert main(["step", ITEM, "--run", lab.run.uri]) == EXIT_USER
        assert "shard 1 of the hold-out" in (error := capsys.readouterr().err)
        with pytest.raises(UserError, match=said):
            lab.execute(ITEM)
        assert f"tuneline run answer --shard 1 --run {lab.run.uri}" in error
    assert status(lab.run, ITEM).stops_release
    lab.run.store.put_bytes(key, good)
    lab.leave_shipped(tiny_models.base_gguf)
    with pytest.raises(UserError, match="no tuned model with the weights, the engine"):
        lab.execute(ITEM)
    lab.leave_shipped(tiny_models.candidate_gguf)
    # Other examples for the base: the weights are the same, and the prompts are not.
    lab.leave_dataset(task_rows(SPLITS)[20:])
    with pytest.raises(UserError, match="no base model with examples with the weights, the"):
        lab.execute(ITEM)
    lab.leave_dataset(task_rows(SPLITS))
    assert lab.execute(ITEM).verdict
    assert main(["run", "answer", "--shard", "2", "--run", lab.run.uri]) == EXIT_USER
    assert "there is no shard 2 in" in capsys.readouterr().err


def test_a_release_that_no_pod_can_serve_is_undecided_as_with_one(answered_by):
    said = []
    for shards in (1, 2):
        evidence = answered_by(shards, engine="tensorrt_llm").execute(ITEM)
        said.append((evidence.verdict, values(evidence)["worse_than_released_by"]))
        assert "night-1 can't answer here (the engine tensorrt_llm" in evidence.summary
    assert said[0] == said[1]
