"""The policy: which settings are limits, what is looser, and where a looser run is stopped."""

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from tests.lab.runs import IN_PRODUCTION, Lab, change_meta

from tuneline.catalogue import Severity, get_item
from tuneline.config import PipelineConfig, build_config, merge, presets_dir, read_policy
from tuneline.config.pipeline import LIMITS, item_of
from tuneline.config.policy import limits_in, policy_file
from tuneline.errors import UserError
from tuneline.evaluation.forgetting import decision
from tuneline.evidence import measure
from tuneline.launch import create_run
from tuneline.people import approvals
from tuneline.step import execute
from tuneline.verdicts import status

HOLDS = measure("m", 0, "rows", "<=", 0)
DATA = {"data": {"source": "rows.jsonl"}}
# Numbers that no policy bounds, by the reason.
EXEMPT = {
    "a size of samples, which decides how much an item can show":
        "data.pii_canaries data.max_holdout_rows data.holdout_share data.validation_share "
        "evaluation.regression_questions "
        "evaluation.regression_first_look evaluation.determinism_prompts "
        "evaluation.determinism_repeats evaluation.determinism_tokens evaluation.latency_warmup "
        "evaluation.load.seconds evaluation.review_pairs "
        "deployment.quality_rows governance.fallback.calibration_rows",
    "it chooses rows; the rows that stay are measured by limits of their own":
        "data.repeated_phrase_share data.max_tokens data.max_train_rows "
        "data.csv.max_per_label",
    "what it describes lies with the dataset: its classes and their shares":
        "data.min_rows_per_class data.edge_case_share data.reference_shares",
    "it says how training is done; what comes of it is measured":
        "training.r training.alpha training.dropout training.sweep_r training.sweep_share "
        "training.sweep_steps training.epochs training.max_steps training.learning_rate "
        "training.warmup_share training.effective_batch training.rehearsal_rows "
        "training.rehearsal_weight training.canaries training.canary_repeats training.micro_batch "
        "training.evaluations training.plateau_nats training.seed",
    "a resource: time, money, memory, processes":
        "training.max_hours training.max_cost training.device_cost_per_hour "
        "training.memory_limit_gib training.keep_checkpoints training.checkpoint_minutes "
        "training.threads training.processes evaluation.shards pods.gpus pods.sizes.gpus "
        "pods.nodes pods.user pods.deadline_hours governance.machine_cost_per_hour "
        "governance.lock_days",
    "it describes the service that the evidence then claims; the manifest states it":
        "evaluation.max_new_tokens evaluation.concurrency evaluation.load.requests_per_s "
        "evaluation.load.users evaluation.load.requests_per_user_per_minute "
        "evaluation.load.replicas deployment.parallel deployment.context_tokens "
        "deployment.max_lora_rank deployment.max_adapter_slowdown governance.monthly_users "
        "governance.fallback.budget_s governance.fallback.answer_timeout_s "
        "governance.fallback.first_token_timeout_s governance.fallback.stream_window_tokens "
        "governance.fallback.larger.context_tokens governance.fallback.larger.per_1k_prompt "
        "governance.fallback.larger.per_1k_completion",
    "it says how the release is tried after the gate, by a rule with error rates of its own":
        "governance.canary.share governance.canary.hours governance.canary.begin_hours",
    "it says how people are asked":
        "data.pii_review_rows data.pii_review_hours evaluation.review_hours "
        "evaluation.reviewers_per_pair evaluation.review_pairs_per_task waivers.up_to",
    "a rate of alarms in service; too high is as bad as too low":
        "governance.min_confidence governance.drift_p_value governance.fallback.caught_share "
        "governance.fallback.false_alarm_share",
}  # fmt: skip


def made(*layers, **settings):
    return build_config(DATA, *layers, settings)


def sections(annotation: Any) -> list[type[BaseModel]]:
    kinds = (annotation, *get_args(annotation))
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def has_number(annotation: Any) -> bool:
    inner = get_args(annotation)
    if not inner:
        return annotation in (int, float)
    return any(has_number(kind) for kind in inner)


def numbers(section: type[BaseModel], prefix: str = "") -> set[str]:
    """The paths of all settings that hold numbers."""
    found = set()
    for name, field in section.model_fields.items():
        for inner in sections(field.annotation):
            found |= numbers(inner, f"{prefix}{name}.")
        if not sections(field.annotation) and has_number(field.annotation):
            found.add(prefix + name)
    return found


def test_every_number_is_a_limit_or_exempt_with_a_reason():
    exempt = " ".join(EXEMPT.values()).split()
    assert len(exempt) == len(set(exempt))
    assert not set(LIMITS) & set(exempt)
    numeric = {
        name for name, limit in LIMITS.items() if limit.stricter in LOOSE and not limit.levels
    }
    assert numbers(PipelineConfig) == numeric | set(exempt)


def test_a_setting_that_nobody_thought_of_would_be_seen():
    class Grown(PipelineConfig):
        new_limit: float = 1.0

    assert "new_limit" in numbers(Grown)


def test_the_shipped_policy_names_every_limit_of_a_critical_item():
    floors = read_policy().content.limits
    for setting, limit in LIMITS.items():
        if limit.item and get_item(limit.item).severity == Severity.CRITICAL:
            place = floors
            for part in setting.split("."):
                if part not in place:
                    # What only warns may keep the default of its setting.
                    assert setting.startswith("evaluation.slices"), setting
                    break
                place = place[part]


@pytest.mark.parametrize("preset", [path.stem for path in presets_dir().glob("*.yaml")])
def test_no_preset_is_looser_than_the_shipped_policy(preset):
    assert read_policy().looser(build_config(DATA, preset=preset)) == []


def test_what_unset_limits_stand_for_is_what_the_items_take():
    values = limits_in(made())
    assert all(get_item(item_of(path)) for path in values)
    assert values["evaluation.max_regression"] == decision.DEFAULT_LIMIT
    assert values["evaluation.max_perplexity_ratio"] == decision.DEFAULT_RATIO


def nested(path, value):
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


# Values that every validator of the settings takes.
LOOSE = {"lower": [1, 0.99, 0.4, 1.5, 5, 100, 1000], "higher": [0, 0.01, 0.5, 1, -1, -0.5]}
STRICT = {"lower": [1e-6, 0.001, 1.01, 1, 2], "higher": [1, 0.99, 256, 32, 0.9]}


def first_that_fits(limit, path, candidates, *, looser):
    now = limits_in(made())[path]
    for value in limit.levels or candidates[limit.stricter]:
        if now is None or limit.is_looser(value, now) != looser or value == now:
            continue
        try:
            return made(nested(path, value), profile="production")
        except UserError:
            continue
    return None


ONES = [(limit, path) for setting, limit in LIMITS.items() for path in limits_in(made()) if
        limit.stricter in LOOSE and setting != "data.label_field" and
        (path == setting or path.startswith(f"{setting}."))]  # fmt: skip


@pytest.mark.parametrize(("limit", "path"), ONES, ids=[path for _, path in ONES])
def test_each_limit_is_seen_when_it_is_looser_and_not_when_it_is_stricter(limit, path):
    loose = first_that_fits(limit, path, LOOSE, looser=True)
    if loose is None:
        # It is free by default: null is as loose as it gets, and levels may begin there.
        assert limits_in(made())[path] in (None, math.inf, *limit.levels[:1])
    else:
        assert path in [one.setting for one in read_policy().looser(loose)]
    strict = first_that_fits(limit, path, STRICT, looser=False)
    if strict is not None:
        assert read_policy().looser(strict) == []


def test_no_limit_for_what_is_left_is_looser():
    for loose in (11, None):
        found = [one.setting for one in read_policy().looser(made(data={"pii_max_left": loose}))]
        assert found == ["data.pii_max_left"]
    assert read_policy().looser(made(data={"pii_max_left": 9})) == []


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    path.write_text(json.dumps({"messages": turns}) + "\n")
    return str(path)


def created(tmp_path, dataset, settings, by="alice", **fields):
    fields |= {"data": dataset, "overrides": json.dumps(merge(IN_PRODUCTION, settings))}
    return create_run(fields, (tmp_path / "store").as_uri(), "run", {"started_by": by})


@pytest.mark.parametrize(
    ("section", "setting", "value"),
    [
        ("data", "pii_profile", ["pci"]),
        ("data", "pii_allow", ["Anna"]),
        ("data", "languages", ["en", "de"]),
        ("data", "label_field", None),
        ("data", "holdout", "easy.jsonl"),
        ("data", "label_conflicts", "keep"),
        ("evaluation", "metric", "chrf"),
        ("evaluation", "min_metric", 0),
        ("evaluation", "regression_texts", 2),
        ("evaluation", "latency_requests", 1),
        ("evaluation", "determinism_tokens", 1),
        ("training", "plateau_evaluations", None),
        ("governance", "intended_use", "research"),
    ],
)
def test_no_switch_defeats_a_critical_item_in_production_without_an_approval(
    tmp_path, dataset, section, setting, value
):
    if setting == "holdout":
        value = str(tmp_path / value)
        (tmp_path / "easy.jsonl").write_bytes(Path(dataset).read_bytes())
    with pytest.raises(UserError, match=rf"{section}\.{setting}"):
        created(tmp_path, dataset, {section: {setting: value}})
    assert not (tmp_path / "store/runs").exists()
    if setting == "determinism_tokens":
        return
    (looser,) = read_policy().looser(made(IN_PRODUCTION, {section: {setting: value}}))
    waiver = {"item": looser.item, "limit": looser.setting, "reason": "agreed with the owner"}
    run = created(tmp_path, dataset, {section: {setting: value}, "waivers": [waiver]})
    assert approvals.critical_waivers(run)


def test_the_shipped_policy_takes_a_metric_of_a_team_s_own():
    own = {"evaluation": {"metric": "scorer", "scorer": ["score"]}}
    assert read_policy().looser(made(IN_PRODUCTION, own)) == []


LIMIT = {
    "item": "holdout_performance",
    "limit": "evaluation.min_gain",
    "reason": "the base already answers everything",
}
OF_ITEM = {**LIMIT, "limit": None, "measurement": "gain_lower", "up_to": -1}


@pytest.mark.parametrize(
    ("settings", "sentences"),
    [
        (
            {"evaluation": {"min_gain": -1}},
            ["evaluation.min_gain is -1.0, the policy allows at least 0", "needs a waiver"],
        ),
        # A waiver of the item is not one of its limit.
        ({"evaluation": {"min_gain": -1}, "waivers": [OF_ITEM]}, ["needs a waiver"]),
        # The preset of the laptop is not enough.
        (
            {
                "data": {"pii_leak_breach": "warn", "undeclared_language_breach": "warn"},
                "evaluation": {"max_regression": 0.1},
            },
            [
                "data.pii_leak_breach is warn, the policy allows fail; ",
                "data.undeclared_language_breach is warn, the policy allows fail; ",
                "evaluation.max_regression is",
            ],
        ),
        # What starts a run can't name a policy.
        ({"policy": {"version": 2}}, ["there is no such setting"]),
        ({"governance": {"policy": "x"}}, ["there is no such setting"]),
    ],
)
def test_a_looser_run_is_refused_in_production_before_anything_runs(
    tmp_path, dataset, settings, sentences
):
    with pytest.raises(UserError) as refused:
        created(tmp_path, dataset, settings)
    for sentence in sentences:
        assert sentence in str(refused.value)
    assert not (tmp_path / "store/runs").exists()


def test_a_run_with_a_waiver_is_made_and_records_the_policy(tmp_path, dataset):
    run = created(tmp_path, dataset, {"evaluation": {"min_gain": -1}, "waivers": [LIMIT]})
    assert [w.limit for w in approvals.critical_waivers(run)] == ["evaluation.min_gain"]
    assert run.meta["policy"] == read_policy().recorded()
    assert run.policy.sha256 == read_policy().sha256
    # The waiver would not count, which hours of work would show.
    with pytest.raises(UserError, match=r"let the policy allow it .* if a person starts the run"):
        created(tmp_path, dataset, {"evaluation": {"min_gain": -1}, "waivers": [LIMIT]}, by=None)


def test_the_laptop_profile_makes_the_run(tmp_path, dataset):
    run = created(tmp_path, dataset, {"profile": "laptop", "evaluation": {"min_gain": -1}})
    assert [one.setting for one in run.policy.looser(run.config)] == ["evaluation.min_gain"]


def test_the_form_has_no_field_for_a_policy(tmp_path, dataset):
    with pytest.raises(UserError, match="unknown field 'policy'"):
        created(tmp_path, dataset, {}, policy="version: 2")


def test_a_policy_can_demand_the_profile_and_the_approval(tmp_path, dataset, policy):
    policy(profile="production", approval=True)
    with pytest.raises(UserError, match=r"profile is laptop, the policy \(.*\) allows production"):
        created(tmp_path, dataset, {"profile": "laptop"})
    with pytest.raises(UserError, match="asks for an approval of every release"):
        created(tmp_path, dataset, {})
    assert created(tmp_path, dataset, {"approval": True}).config.approval


def test_a_model_has_limits_of_its_own(policy):
    policy(models={"faq": {"evaluation": {"min_metric": 0.8}}})
    low = {"evaluation": {"min_metric": 0.7}}
    assert [str(one) for one in read_policy().looser(made(low, name="faq"))] == [
        "evaluation.min_metric is 0.7, the policy allows at least 0.8"
    ]
    assert read_policy().looser(made(low, name="other")) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"limits": {"evaluation": {"min_gian": 0}}}, "did you mean evaluation.min_gain?"),
        ({"models": {"m": {"evaluation": {"min_gian": 0}}}}, "did you mean evaluation.min_gain?"),
        ({"limits": {"evaluation": {"min_gain": "low"}}}, "must be a number or null, not 'low'"),
        ({"laptop": {"data": {"pii_leak_breach": "no"}}}, "must be warn or fail or null"),
        ({"version": 0}, "version"),
        ({"limit": {}}, "did you mean limits?"),
    ],
)
def test_a_wrong_policy_is_refused_with_a_sentence(policy, change, sentence):
    policy(**change)
    with pytest.raises(UserError) as refused:
        read_policy()
    assert sentence in str(refused.value)
    assert str(policy_file()) in str(refused.value)


def test_a_missing_policy_stops(monkeypatch, tmp_path):
    monkeypatch.setenv("TUNELINE_POLICY", str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match=r"restore config/policy\.yaml"):
        read_policy()


def test_an_item_that_the_policy_does_not_name_keeps_its_default(policy):
    policy(limits={})
    (found,) = read_policy().looser(made(evaluation={"min_gain": -1}))
    assert found.floor == 0


# The verdicts.


def lab(tmp_path, *, started_by="alice", **settings):
    made = Lab(tmp_path, settings)
    change_meta(made, started_by=started_by)
    made.leave("holdout_performance", {}, [HOLDS])
    return made


MINUS_ONE = {"evaluation": {"min_gain": -1}}
WAIVED = {"profile": "production", **MINUS_ONE, "waivers": [LIMIT]}
LOOSER = "evaluation.min_gain is -1.0, the policy allows at least 0"


@pytest.mark.parametrize(
    ("settings", "people", "verdict", "stops", "because"),
    [
        ({}, {}, "pass", False, ""),
        ({"profile": "production"}, {}, "pass", False, ""),
        (MINUS_ONE, {}, "warn", False, LOOSER),
        ({"profile": "production", **MINUS_ONE}, {}, "fail", True, LOOSER),
        # Until the release is approved, which promote demands.
        (WAIVED, {}, "waived", False, "accepted: the base already answers"),
        # A schedule started it.
        (WAIVED, {"started_by": None}, "fail", True, LOOSER),
    ],
)
def test_a_looser_critical_limit_warns_on_the_laptop_and_needs_an_approval_in_production(
    tmp_path, settings, people, verdict, stops, because
):
    row = status(lab(tmp_path, **people, **settings).run, "holdout_performance")
    assert (row.verdict, row.stops_release) == (verdict, stops)
    assert because in row.because


def test_a_waiver_of_a_limit_accepts_no_failure(tmp_path):
    made = lab(tmp_path, **WAIVED)
    made.leave("holdout_performance", {}, [measure("m", 3, "rows", "<=", 0)])
    assert status(made.run, "holdout_performance").verdict == "fail"


def test_a_looser_limit_of_a_recommended_item_warns_in_production(tmp_path):
    made = Lab(tmp_path, {"profile": "production", "evaluation": {"min_identical_share": 0.5}})
    made.leave("determinism", {}, [HOLDS])
    row = status(made.run, "determinism")
    assert (row.verdict, row.stops_release) == ("warn", False)
    assert "the policy allows at least 1" in row.because


def test_verdicts_keep_to_the_policy_of_the_run(tmp_path, policy):
    made = lab(tmp_path, profile="production", **MINUS_ONE)
    policy(limits={"evaluation": {"min_gain": -1}})
    assert status(made.run, "holdout_performance").verdict == "fail"


def test_an_edited_record_of_the_policy_is_found(tmp_path):
    made = lab(tmp_path, profile="production", **MINUS_ONE)
    text = made.run.policy.text.replace("min_gain: 0.0", "min_gain: -1.0")
    made.run.meta["policy"] = {**made.run.meta["policy"], "text": text}
    with pytest.raises(UserError, match="the policy's text is not the one that was recorded"):
        status(made.run, "holdout_performance")


def test_a_pod_with_another_policy_is_refused_in_production(tmp_path, policy):
    made = Lab(tmp_path, {"profile": "production"})
    policy(version=9)
    with pytest.raises(UserError, match=r"this image has .* \(version 9\)"):
        execute("cold_start", made.run.uri)


@pytest.mark.parametrize(
    ("waiver", "sentence"),
    [
        ({"limit": "evaluation.min_gian"}, "did you mean evaluation.min_gain?"),
        ({"item": "lineage"}, "is a limit of holdout_performance, not of lineage"),
        ({"limit": "data.removed_share_fail"}, "has a limit for each item; name data.removed"),
    ],
)
def test_a_waiver_of_a_limit_that_is_not_there_is_refused(waiver, sentence):
    with pytest.raises(UserError) as refused:
        made(waivers=[{**LIMIT, **waiver}])
    assert sentence in str(refused.value)


def test_waivers_are_a_list_in_the_overrides(tmp_path, dataset):
    waiver = {**OF_ITEM, "item": "cold_start"}
    run = created(tmp_path, dataset, {"waivers": [waiver]})
    assert [(one.item, one.limit) for one in run.config.waivers] == [("cold_start", None)]
    with pytest.raises(UserError, match=r"waivers"):
        created(tmp_path, dataset, {"waivers": {"item": "cold_start"}})
