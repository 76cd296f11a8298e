"""The main DAG: 25 items, each judged by its own task or its gate, in the order of the data."""

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from airflow.api_fastapi.core_api.services.ui.task_group import (
    task_group_to_dict,
    task_group_to_dict_grid,
)
from airflow.sdk import TriggerRule
from airflow.sdk.exceptions import AirflowFailException
from airflow.serialization.serialized_objects import DagSerialization
from tests.lab.commands import call
from tests.lab.runs import Lab

from tuneline.airflow import finetune_to_production
from tuneline.catalogue import ITEMS, STEPS, Group, Phase, Size
from tuneline.config import Model, ModelFile, build_config

ROOT = Path(__file__).parents[2]
SWEEP = "tuneline run sweep --r".split()
VLLM = {"deployment": {"engine": "vllm"}}
RUN = ["--run", "{{ ti.xcom_pull(task_ids='prepare_run') }}"]


def before(dag, task_id):
    """Everything that a task waits for, directly or not."""
    return dag.get_task(task_id).get_flat_relative_ids(upstream=True)


def test_every_item_and_helper_is_a_pod_with_its_command(dag):
    for step in STEPS:
        assert dag.get_task(step.id).cmds == ["tuneline", *step.command[1:], *RUN]


def test_every_item_is_judged_once_a_data_item_by_its_gate(dag):
    audits = {"final_audit", "extraction_audit", "build_engine"}
    for step in STEPS:
        gate = f"gate_{step.id}"
        judged = dag.get_task(step.id).judged
        if step in ITEMS and step.phase == Phase.DATA:
            assert judged == []
            assert dag.get_task(step.id).downstream_task_ids - {"review_rows"} == {gate}
            assert dag.get_task(gate).item_id == step.id
        else:
            assert gate not in dag.task_ids
            assert judged == [step.id] if step in ITEMS else bool(judged) == (step.id in audits)
    data = {item.id for item in ITEMS if item.phase == Phase.DATA}
    assert set(dag.get_task("final_audit").judged) == data
    assert dag.get_task("extraction_audit").judged == ["pii_scrubbing"]
    assert dag.get_task("build_engine").judged == ["license_audit"]


def test_every_judgement_stands_before_the_release(dag):
    judges = {f"gate_{item.id}" if item.phase == Phase.DATA else item.id for item in ITEMS}
    audits = {"final_audit", "extraction_audit", "approve_release"}
    assert judges | audits <= before(dag, "promote")


def test_the_canary_is_awaited_after_the_release_and_nothing_waits_for_it(dag):
    task = dag.get_task("canary")
    assert task.upstream_task_ids == {"promote"}
    assert not task.downstream_task_ids
    # Answers of people and the days of a canary both fit.
    assert dag.dagrun_timeout.days == 14


def structures(dag):
    """What Airflow's UI draws of a DAG: the rows of its grid and the boxes of its graph."""
    stored = DagSerialization.from_dict(DagSerialization.to_dict(dag)).task_group
    return task_group_to_dict_grid(stored), task_group_to_dict(stored)


def test_the_groups_are_the_story_of_the_run(dag):
    """Airflow draws nothing of a DAG whose groups wait for each other in a circle."""
    for drawn in structures(dag):
        assert [part["id"] for part in drawn["children"]] == [group.value for group in Group]
    for step in STEPS:
        assert dag.get_task(step.id).task_group.group_id == step.group


def test_a_circle_of_groups_is_caught(monkeypatch):
    """A licence audit in the group of the release comes both first and last."""
    moved = tuple(
        replace(step, grouped=None) if step.id == "license_audit" else step for step in STEPS
    )
    monkeypatch.setattr(finetune_to_production, "RUN_ORDER", moved)
    made = finetune_to_production.build(Model("a", "", ModelFile()))
    with pytest.raises(ValueError, match="cyclic dependency"):
        structures(made)


# What the catalogue does not say: the questions, the sweep and the canary between the steps.
BETWEEN = (
    ("fetch_base", "approve_license", "license_audit"),
    ("pii_scrubbing", "review_rows", "final_audit"),
    ("license_audit final_audit", "ask_sweep", "sweep"),
    ("ask_sweep", "sweep", "lora_selection"),
    ("build_engine", "answer_holdout", "holdout_performance"),
    ("prepare_review", "review_pairs", "human_review"),
    ("lineage", "approve_release", "promote"),
)


def test_a_step_waits_for_what_judges_the_steps_before_it(dag):
    gates = {f"gate_{step.id}": step.id for step in STEPS}
    judges = {gates.get(task_id, task_id): task_id for task_id in dag.task_ids}
    for step in STEPS:
        waits = {judges[earlier] for earlier in step.after} or {"prepare_run"}
        assert waits <= dag.get_task(step.id).upstream_task_ids, step.id
    for earlier, task_id, later in BETWEEN:
        task = dag.get_task(task_id)
        assert {judges[e] for e in earlier.split()} <= task.upstream_task_ids
        assert set(later.split()) <= task.downstream_task_ids
    # The run itself goes from the data over the adapter to the release.
    story = "schema_validation final_audit train holdout_performance lineage promote"
    for first, then in pairwise(story.split()):
        assert judges[first] in before(dag, then)


def test_people_can_be_left_out_but_a_skipped_run_never_goes_on(dag):
    """A task that bears a skipped question still needs a success of something unskippable."""
    lenient = {t.task_id for t in dag.tasks if t.trigger_rule != TriggerRule.ALL_SUCCESS}
    after_people = {"license_audit", "human_review", "promote", "final_audit"}
    assert lenient == {*after_people, "lora_selection", "holdout_performance"}
    for task_id in lenient:
        task = dag.get_task(task_id)
        assert task.trigger_rule == TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS
        questions = {"approve_license", "review_rows", "review_pairs", "approve_release", "sweep"}
        questions.add("answer_holdout")
        assert task.upstream_task_ids - questions, f"{task_id} hangs on a question alone"
        assert task.upstream_task_ids & questions


def test_the_sweep_is_one_pod_a_rank_in_the_pool_of_the_gpu(dag):
    mapped = dag.get_task("sweep")
    assert mapped.is_mapped
    assert mapped.expand_input.value["command"].operator.task_id == "ask_sweep"
    # What the scheduler reads of a mapped task: the operator is made only in the worker.
    assert (mapped.pool, mapped.retries, mapped.trigger_rule) == ("gpu", 2, "all_success")
    assert type(mapped.retry_policy).__name__ == "StepRetryPolicy"
    command = [*SWEEP, "8"]
    pod = mapped.unmap({"command": command})
    assert pod.size.uses_gpus
    assert pod.cmds == [*command, *RUN]
    assert pod.startup_timeout_seconds >= 30 * 60
    assert pod.durable is True


def test_the_holdout_alone_is_answered_by_several_pods(dag):
    """What measures speed or compares numbers of one server stays one pod."""
    mapped = {task.task_id for task in dag.tasks if task.is_mapped}
    assert mapped == {"sweep", "answer_holdout", "review_rows", "review_pairs"}
    shards = dag.get_task("answer_holdout")
    assert shards.expand_input.value["command"].operator.task_id == "build_engine"
    # A laptop's engine runs on CPUs; another one waits for a slot of the GPUs for each pod.
    assert (shards.pool, shards.retries) == ("default_pool", 2)
    vllm = finetune_to_production.build(Model("a", "", ModelFile(settings=VLLM)))
    assert vllm.get_task("answer_holdout").pool == "gpu"
    command = ["tuneline", "run", "answer", "--shard", "1"]
    pod = shards.unmap({"command": command})
    assert (pod.size, pod.cmds) == (Size.ENGINE, [*command, *RUN])


@pytest.mark.parametrize(("shards", "pods"), [(1, []), (3, ["0", "1", "2"])])
def test_the_run_says_how_many_pods_answer(dag, tmp_path, shards, pods):
    """One: an empty list, over which Airflow skips the mapped task, and no pod more than before."""
    run = Lab(tmp_path, {"evaluation": {"shards": shards}}).run
    dealt = dag.get_task("build_engine").deal(run)
    assert dealt == [["tuneline", "run", "answer", "--shard", number] for number in pods]


@pytest.mark.parametrize(
    ("training", "engine", "commands"),
    [
        ({}, "llama_cpp", []),
        ({"sweep_r": [8, 16]}, "llama_cpp", [[*SWEEP, "8"], [*SWEEP, "16"]]),
        ({"sweep_r": [8, 128]}, "tensorrt_llm", "rank 128 is above 64"),
    ],
)
def test_the_question_for_a_sweep(dag, tmp_path, training, engine, commands):
    """Not asked for: an empty list, over which Airflow skips the mapped task without a pod."""
    run = Lab(tmp_path, {"training": training, "deployment": {"engine": engine}}).run
    ask = dag.get_task("ask_sweep").python_callable
    if isinstance(commands, str):
        with pytest.raises(AirflowFailException, match=commands):
            ask(run.uri)
    else:
        assert ask(run.uri) == commands


def test_every_pod_states_its_timeouts_and_tells_no_secrets(dag):
    for step in STEPS:
        pod = dag.get_task(step.id)
        least = 30 * 60 if pod.size.uses_gpus else 5 * 60
        assert pod.schedule_timeout_seconds >= least
        assert pod.startup_timeout_seconds >= least
        assert pod.active_deadline_seconds > 0
        assert pod.durable is True
        assert pod.deferrable is False
        assert pod.do_xcom_push is False
        assert pod.log_pod_spec_on_failure is False
        assert pod.on_finish_action.value == "delete_pod"
        assert pod.retries == (8 if step.id == "train" else 2)
        # The default engine runs on a CPU.
        assert pod.pool == ("gpu" if step.size == Size.TRAIN else "default_pool")
        assert pod.random_name_suffix is False


def test_an_engine_that_uses_gpus_shares_the_pool_of_training(dag):
    model = Model(
        "a", "", ModelFile.model_validate({"settings": {"deployment": {"engine": "vllm"}}})
    )
    on_gpu = finetune_to_production.build(model)
    pooled = {step.id for step in STEPS if on_gpu.get_task(step.id).pool == "gpu"}
    on_cpu = {step.id for step in STEPS if dag.get_task(step.id).pool == "gpu"}
    assert "train" in on_cpu
    assert pooled == on_cpu | {step.id for step in STEPS if step.engine}


def test_steps_that_start_the_engine_run_in_its_image(dag):
    assert all(dag.get_task(step.id).size == step.size for step in STEPS)
    assert {s.id for s in STEPS if s.size == Size.ENGINE} == {s.id for s in STEPS if s.engine}
    config = build_config(
        {"data": {"source": "rows.jsonl"}}, {"deployment": {"engine": "vllm"}, "pods": {"gpus": 2}}
    )
    pod = finetune_to_production.build(Model("a", "", ModelFile())).get_task("determinism")
    pod.apply(config.pods_of(Size.ENGINE))
    assert pod.image == "tuneline/vllm:local"
    assert pod.container_resources.limits["nvidia.com/gpu"] == "2"
    on_cpu = build_config({"data": {"source": "rows.jsonl"}}, {"pods": {"gpus": 2}})
    pod.apply(on_cpu.pods_of(Size.ENGINE))
    assert "nvidia.com/gpu" not in pod.container_resources.limits
    named = build_config({"data": {"source": "r"}}, {"pods": {"engine_image": "mine:1"}})
    pods = named.pods_of(Size.ENGINE)
    assert pods.image == pods.gpu_image == "mine:1"


def test_steps_that_measure_speed_have_the_machine_to_themselves(dag):
    """On a small machine whatever runs beside a benchmark is in its numbers."""
    review = {"prepare_review", "review_pairs", "human_review"}
    for benchmark in ("latency_benchmark", "production_quantization", "adapter_merging"):
        task = dag.get_task(benchmark)
        related = (
            task.get_flat_relative_ids(upstream=True)
            | task.get_flat_relative_ids(upstream=False)
            | {benchmark}
        )
        beside = set(dag.task_ids) - related
        # An upload of a few megabytes that runs when training has ended, if at all.
        assert beside <= review | {"sync_tracking"}, f"{beside} may run beside {benchmark}"


HEAVY = """
import sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
assert not bag.import_errors, bag.import_errors
print({"torch", "transformers", "great_expectations", "pandas", "matplotlib"} & set(sys.modules))
"""


def test_importing_the_dags_loads_no_heavy_library():
    dags = str(ROOT / "dags")
    done = call(sys.executable, "-c", HEAVY, dags, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
