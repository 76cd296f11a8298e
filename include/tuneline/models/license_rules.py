"""Judge what a licence allows, by the rules in `license_rules.yaml`.

Every decision is one of three: allowed, refused, or `person`, which asks somebody to read the
text. A licence that has no rule, or none at all, is never allowed, whatever the use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from tuneline.models.license_expression import Expression, Named, parse
from tuneline.models.license_table import (
    NONE,
    Decision,
    Rule,
    Use,
    find_rule,
    key_of,
    normalise,
    table,
)

Role = Literal["model", "data", "package", "generator"]
# What `governance.intended_use` calls the uses.
_SETTINGS: dict[Use, str] = {"hosted": "commercial", "distributed": "distribution"}
_RANK: dict[Decision, int] = {"allowed": 0, "person": 1, "refused": 2}


@dataclass(frozen=True)
class Circumstances:
    """What a licence is judged for.

    Attributes:
        use: the use.
        monthly_users: monthly active users of the licensee; None if nobody said.
        in_eu: whether the licensee is at home in the European Union; None if nobody said.
        multimodal: whether the base model takes more than text.
        outputs_train: whether answers of the tuned model will train other models.
        model_name: name of the tuned model.
        base_family: family of the base model's licence, for data that a model wrote.
    """

    use: Use
    monthly_users: int | None = None
    in_eu: bool | None = None
    multimodal: bool = False
    outputs_train: bool = False
    model_name: str = ""
    base_family: str | None = None


@dataclass(frozen=True)
class Judgement:
    """The decision on a licence.

    Attributes:
        decision: allowed, refused, or a person has to decide.
        reason: the rule that decided.
        source: address of the text that the rule was read from; empty without a rule.
        rules: the rules that bind, by the licence's id; those not chosen from an OR do not.
    """

    decision: Decision
    reason: str
    source: str
    rules: Mapping[str, Rule]


def judge(license_id: str, circumstances: Circumstances, role: Role = "model") -> Judgement:
    """Judge whether a licence allows a use.

    Args:
        license_id: an id or an SPDX expression.
        circumstances: the use and what else the rules ask for.
        role: what the licence is that of.
    """
    whole = Named(license_id)
    if license_id == NONE or find_rule(license_id):
        return _judge(whole, circumstances, role)
    try:
        expression = parse(license_id)
    except ValueError:
        expression = whole
    return _judge(expression, circumstances, role)


def _judge(expression: Expression, circumstances: Circumstances, role: Role) -> Judgement:
    if isinstance(expression, Named):
        return _judge_one(expression, circumstances, role)
    parts = [_judge(part, circumstances, role) for part in expression.parts]
    if expression.operator == "OR":
        # The licensee chooses; the first of the best binds.
        return min(parts, key=lambda part: _RANK[part.decision])
    worst = max(parts, key=lambda part: _RANK[part.decision])
    rules = {name: rule for part in parts for name, rule in part.rules.items()}
    decisive = [part for part in parts if part.decision == worst.decision]
    reason = "; ".join(dict.fromkeys(part.reason for part in decisive))
    return Judgement(worst.decision, reason, worst.source, rules)


def _judge_one(named: Named, circumstances: Circumstances, role: Role) -> Judgement:
    name = normalise(named.name)
    if name == NONE:
        return Judgement("person", "no licence is stated", "", {})
    rule = find_rule(named.name)
    if rule is None:
        return Judgement("person", f"{name[:60]}: there is no rule for this licence", "", {})
    if named.exception is not None:
        return _with_exception(name, named.exception, rule, circumstances, role)
    return _by_rule(name, rule, circumstances, role)


def _with_exception(
    name: str, exception: str, rule: Rule, circumstances: Circumstances, role: Role
) -> Judgement:
    shown = f"{name} WITH {exception}"
    plain = _by_rule(name, rule, circumstances, role)
    known = next((e for e in table().exceptions if exception in e.ids), None)
    if known is None:
        why = f"{shown}: there is no rule for this exception"
        worst = plain.decision if plain.decision == "refused" else "person"
        return Judgement(worst, why, rule.source, {shown: rule})
    eased = table().kinds[known.makes].uses[circumstances.use]
    if _RANK[eased] >= _RANK[plain.decision]:
        return plain
    return Judgement(
        eased, f"{shown}: {_verb(eased, circumstances.use)}", known.source, plain.rules
    )


def _by_rule(name: str, rule: Rule, circumstances: Circumstances, role: Role) -> Judgement:
    decision, reason = _uses(rule, role, circumstances)
    reason = f"{name}: {_verb(decision, circumstances.use)} ({reason})"
    source = rule.source
    for check in _CHECKS.get(role, ()):
        found = check(rule, circumstances)
        if found is not None and _RANK[found[0]] > _RANK[decision]:
            decision, reason = found[0], f"{name}: {found[1]}"
            source = found[2] if len(found) > 2 else rule.source
    return Judgement(decision, reason, source, {name: rule})


def _uses(rule: Rule, role: Role, circumstances: Circumstances) -> tuple[Decision, str]:
    use = circumstances.use
    kind = table().kinds[rule.kind] if rule.kind else None
    reason = rule.reason or (kind.reason if kind else "")
    uses = {**(kind.uses if kind else {}), **rule.uses}
    if role == "data":
        uses |= {**(kind.as_data if kind else {}), **rule.as_data}
    elif role == "package":
        uses |= {**(kind.as_package if kind else {}), **rule.as_package}
    elif role == "generator":
        reason = rule.generator_reason or reason
        if rule.family is None or rule.family != circumstances.base_family:
            uses |= rule.as_generator
    return uses.get(use, "person"), reason


Found = tuple[Decision, str] | tuple[Decision, str, str] | None


def _users(rule: Rule, circumstances: Circumstances) -> Found:
    limit = rule.users
    if limit is None or circumstances.use not in limit.binds:
        return None
    shown = f"{limit.limit // 1_000_000} million monthly users"
    if circumstances.monthly_users is None:
        return "person", f"allowed up to {shown}; set governance.monthly_users ({limit.reason})"
    if circumstances.monthly_users > limit.limit:
        return "refused", f"refused above {shown} ({limit.reason})"
    return None


def _region(rule: Rule, circumstances: Circumstances) -> Found:
    bar = rule.not_for
    if bar is None or not (bar.always or circumstances.multimodal):
        return None
    if circumstances.in_eu is None:
        return "person", f"set governance.domicile ({bar.reason})", bar.source
    return ("refused", bar.reason, bar.source) if circumstances.in_eu else None


def _outputs(rule: Rule, circumstances: Circumstances) -> Found:
    if not circumstances.outputs_train or rule.outputs_train is None:
        return None
    found = rule.outputs_train
    return found.decision, f"answers that train other models: {found.reason}"


def _name(rule: Rule, circumstances: Circumstances) -> Found:
    wanted = rule.model_name
    if wanted is None or circumstances.use not in wanted.binds:
        return None
    prefix = key_of(wanted.begins)
    if key_of(circumstances.model_name).startswith(prefix):
        return None
    return (
        "refused",
        f"the model's name has to begin with {wanted.begins!r} ({wanted.reason}); set `name: "
        f"{prefix}-{circumstances.model_name}`",
    )


# What a rule asks for beyond the use, by what the licence is that of.
_CHECKS: dict[Role, tuple[Callable[[Rule, Circumstances], Found], ...]] = {
    "model": (_users, _region, _outputs, _name),
    "generator": (_name,),
}


def _verb(decision: Decision, use: Use) -> str:
    said = {"allowed": "allows", "refused": "refuses", "person": "a person decides on"}[decision]
    return f"{said} {_SETTINGS.get(use, use)} use"
