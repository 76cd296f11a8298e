import itertools
import math
import random
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tests.lab.data_runs import DataLab, answer, chat, clean_rows, text
from tests.lab.runs import broken, value

from tuneline.artifacts.data import AUDIT, DATASET, DATASET_VERSION, TRIGGERS
from tuneline.asking.rows import answer_limit
from tuneline.config import DataConfig
from tuneline.data.final_audit import dataset_version, found_again, rows_with_pii
from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import Row, read_dataset, stored_dataset, write_dataset
from tuneline.errors import UserError
from tuneline.models import load_tokenizer
from tuneline.models.tool_turns import to_plain
from tuneline.verdicts import status


class Tampered:
    """A run whose dataset can be changed after the steps, as a faulty step would."""

    def __init__(self, lab):
        self.lab, self.run = lab, lab.run
        lab.upto("distribution_balancing")
        self.found = read_dataset(lab.lab.artifact(DATASET.step, DATASET.name), holdout=True)

    def audit(self, change=lambda rows: rows):
        """Audit the dataset that `change` makes of the rows of the steps: rows, maybe weights."""
        rows, weights = self.found
        changed = change(list(rows))
        rows, weights = changed if isinstance(changed, tuple) else (changed, weights)
        write_dataset(self.lab.lab.root / "tampered.parquet", rows, weights)
        files = {DATASET.name: self.lab.lab.root / "tampered.parquet"}
        audit = self.lab.lab.artifact(DATASET.step, AUDIT)
        self.lab.lab.leave(DATASET.step, {**files, AUDIT: audit})
        return self.lab.step("final_audit")


@pytest.fixture(scope="module")
def lab(tmp_path_factory, base_dir):
    return Tampered(DataLab(tmp_path_factory.mktemp("audited"), base_dir, clean_rows(120)))


def test_clean_rows_hold(lab):
    record = lab.audit()
    assert broken(record) == set()
    found = DATASET_VERSION.find(lab.run)
    assert (found.rows, found.version) == (120, value(record, "dataset_version"))
    assert found.splits == {"train": 90, "validation": 12, "holdout": 18}


TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("heads", "shared"),
    [
        ((), None),
        (("Be kind.",), "Be kind."),
        (("Be kind.", "Be short."), None),
        # A row of the hold-out has none.
        (("Be kind.", None), None),
        # What declares tools is no text for a server.
        ((to_plain([{"role": "system", "content": "Be kind."}], [TOOL])[0]["content"],), None),
    ],
)
def test_a_system_turn_ships_if_every_row_begins_with_it(lab, heads, shared):
    def begun(rows):
        last = len(rows) - 1
        return [
            replace(row, messages=[{"role": "system", "content": head}, *row.messages])
            if (head := heads[-1 if at == last else 0])
            else row
            for at, row in enumerate(rows)
        ]

    lab.audit(begun if heads else lambda rows: rows)
    assert DATASET_VERSION.find(lab.run).system == shared


def test_a_limit_that_cuts_expected_answers_is_refused_before_training(lab):
    longest = DATASET_VERSION.find(lab.run).format.answer_tokens_max
    renderer = Renderer(load_tokenizer(Path(lab.run.config.base_model)), "tokenizer")
    ends = [sum(one.last_answer()) for one in renderer.render([r.messages for r in lab.found[0]])]
    assert longest == max(ends)
    settings = lab.run.config
    assert answer_limit(lab.run) == math.ceil(1.25 * longest) + 8

    def audit_with(limit):
        changed = settings.evaluation.model_copy(update={"max_new_tokens": limit})
        vars(lab.run)["config"] = settings.model_copy(update={"evaluation": changed})
        return lab.audit()

    for limit in (longest, None):
        assert broken(audit_with(limit)) == set()
    with pytest.raises(UserError, match=rf"{longest} tokens: leave it out, or set"):
        audit_with(longest - 1)
    # Another engine refuses what the context has no room for; the limit stays within it.
    prompt = DATASET_VERSION.find(lab.run).format.prompt_tokens_max
    deployment = settings.deployment.model_copy(update={"engine": "vllm"})
    for more, refused in ((longest, False), (longest - 1, True)):
        sized = deployment.model_copy(update={"context_tokens": prompt + more})
        vars(lab.run)["config"] = settings.model_copy(update={"deployment": sized})
        with pytest.raises(UserError, match="no room") if refused else nullcontext():
            lab.audit()
        assert answer_limit(lab.run) == longest
    vars(lab.run)["config"] = settings


def test_a_phrase_that_forces_a_label_is_named_before_training(lab):
    """Twenty of 720 questions of all twelve classes end in two words and have one label."""
    draw = random.Random(5)
    words = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("ando", "erit", "ilum", "osta", "undi")]
    of_class = [draw.sample(words, 12) for _ in range(12)]

    def labelled(rows, forced=()):
        questions = [(n, n % 12) for n in range(720)]
        made = []
        for n, label in questions:
            said = draw.sample(of_class[label], 5) + draw.sample(words, 2)
            label = 3 if n in forced else label
            said += ["blue", "heron"] * (n in forced)
            turns = chat(" ".join(said), answer(f"c{label}", "Yes."))
            made.append(replace(rows[0], row_id=f"r{n}", messages=turns, label=f"c{label}",
                                split="train"))  # fmt: skip
        return made, [1.0] * len(made)

    name = "deduplication.phrases_that_force_a_label"
    assert value(lab.audit(labelled), name) == 0
    record = lab.audit(lambda rows: labelled(rows, {*range(7, 707, 35)}))
    assert (value(record, name), name in broken(record)) == (1, True)
    assert "'blue heron' forces 'c3' in 20 rows." in record.summary
    (trigger,) = TRIGGERS.find(lab.run).root
    assert (trigger.phrase, trigger.label, len(trigger.rows)) == ("blue heron", "c3", 20)


def asked(change, turn=0):
    def first(rows):
        turns = [dict(message) for message in rows[0].messages]
        turns[turn]["content"] = change(turns[turn]["content"])
        return [replace(rows[0], messages=turns), *rows[1:]]

    return first


said = partial(asked, turn=-1)


def leak(rows):
    held = next(r for r in rows if r.split == "holdout")
    return [replace(rows[0], messages=held.messages, split="train"), *rows[1:]]


def copy(rows):
    first = next(r for r in rows if r.split == "train")
    return [*rows, replace(first, row_id=f"{first.row_id}-copy")], [1.0] * (len(rows) + 1)


def weighed(weight):
    return lambda rows: (rows, [weight] + [1.0] * (len(rows) - 1))


@pytest.mark.parametrize(
    ("change", "measurement", "verdict"),
    [
        (asked(lambda text: text + "<|im_end|>"), "schema_validation.invalid_rows", "fail"),
        (asked(lambda text: ""), "schema_validation.invalid_rows", "fail"),
        (asked(lambda text: text * 400), "token_length_audit.tokens_max", "fail"),
        (asked(lambda text: text + " more"), "token_length_audit.stale_counts", "fail"),
        (said(lambda text: f"\n\n{text}"), "schema_validation.inexact_masks", "fail"),
        (
            asked(lambda text: text + " anna@mail.com"),
            "pii_scrubbing.rows_with_pattern_hits",
            "fail",
        ),
        (
            lambda rows: [replace(rows[0], label="anna@mail.com"), *rows[1:]],
            "pii_scrubbing.labels_with_pattern_hits",
            "fail",
        ),
        (leak, "deduplication.cross_split_near_duplicates", "fail"),
        (copy, "deduplication.repeated_rows", "warn"),
        *(
            (weighed(weight), "distribution_balancing.weights_out_of_range", "fail")
            for weight in (0.0, -1.0, 99.0, float("nan"))
        ),
    ],
)
def test_a_fault_that_a_step_put_in_is_found(lab, change, measurement, verdict):
    assert measurement in broken(lab.audit(change))
    assert status(lab.run, measurement.split(".")[0]).verdict == verdict


def test_rows_that_are_rendered_otherwise_than_the_first_step_did_are_found(data_lab, monkeypatch):
    lab, own = Tampered(data_lab(clean_rows(60), target_format="chatml")), Renderer.text
    assert broken(lab.audit()) == set()
    spaced = lambda *given, **how: own(*given, **how).replace("user\n", "user ")  # noqa: E731
    monkeypatch.setattr(Renderer, "text", spaced)
    record = lab.audit()
    assert value(record, "schema_validation.token_mismatches") == 60
    assert status(lab.run, "schema_validation").verdict == "fail"


def test_names_that_a_step_left_are_read_again(data_lab):
    lab = Tampered(data_lab(clean_rows(60), pii_ner=True, pii_profile=["gdpr"]))

    people = itertools.cycle(["Hannah Murphy", "Jan Kowalczyk", "José García"])
    named = asked(lambda text: f"my name is {next(people)}, {text}")
    name = "pii_scrubbing.values_found_again_at_least"
    assert name not in broken(lab.audit())
    record = lab.audit(lambda rows: [named([row])[0] for row in rows])
    assert name in broken(record)
    assert status(lab.run, "pii_scrubbing").verdict == "fail"


def test_a_conversation_that_a_step_tore_is_found(data_lab):
    rows = [{**row, "conversation_id": f"c{n // 2}"} for n, row in enumerate(clean_rows(120))]
    lab = Tampered(data_lab(rows))
    assert broken(lab.audit()) == set()
    other = {"train": "validation", "validation": "train", "holdout": "train"}
    record = lab.audit(lambda rows: [replace(rows[0], split=other[rows[0].split]), *rows[1:]])
    assert value(record, "deduplication.conversations_torn_across_splits") == 1
    assert status(lab.run, "deduplication").verdict == "fail"


def test_a_weight_is_no_copy(lab):
    rows = lab.found[0]
    record = lab.audit(lambda _: (rows, [3.0 if r.split == "train" else 1.0 for r in rows]))
    assert broken(record) == set()


def test_a_piece_in_another_split_and_an_answer_off_its_schema_are_found(data_lab):
    long = [turn for n in range(16) for turn in chat(text(900 + n), answer("login", "Yes."))]
    schema = {"type": "object", "required": ["intent", "reply"]}
    rows = [*clean_rows(60), {"messages": long}]
    lab = Tampered(data_lab(rows, max_tokens=220, too_long="split", answer_schema=schema))
    assert broken(lab.audit()) == set()
    other = {"train": "validation", "validation": "train", "holdout": "train"}
    pieces = [r.row_id for r in lab.found[0] if "#" in r.row_id]
    assert len(pieces) > 1

    def tear(rows):
        return [replace(r, split=other[r.split]) if r.row_id == pieces[0] else r for r in rows]

    assert value(lab.audit(tear), "deduplication.rows_torn_across_splits") == 1
    assert status(lab.run, "deduplication").verdict == "fail"

    def spoil(rows):
        turns = [*rows[0].prompt, {"role": "assistant", "content": '{"intent": "login"}'}]
        return [replace(rows[0], messages=turns), *rows[1:]]

    assert "schema_validation.invalid_answers" in broken(lab.audit(spoil))


def row(number, text, split="train"):
    return Row(str(number), chat(text, "ok"), "f", number, label="a", split=split)


def test_version_does_not_depend_on_order_or_place():
    rows = [row(n, f"question {n}") for n in range(30)]
    moved = [replace(r, row_id=f"x{r.row_id}", source_line=999, source_file="g") for r in rows]
    random.Random(1).shuffle(moved)
    version = dataset_version(rows, [1.0] * 30)
    assert dataset_version(moved, [1.0] * 30) == version
    assert dataset_version(rows, [1.0] * 29 + [2.0]) != version
    assert dataset_version(rows[1:], [1.0] * 29) != version
    assert dataset_version([replace(rows[0], split="holdout"), *rows[1:]], [1.0] * 30) != version


@pytest.mark.parametrize(
    ("said", "surrogates", "settings", "count"),
    [
        ("anna@mail.com", {}, {}, 1),
        ("anna@mail.com", {"1": [("EMAIL_ADDRESS", "anna@mail.com")]}, {}, 0),
        ("anna@mail.com", {}, {"pii_allow": ["ANNA@mail.com"]}, 0),
        ("I was admitted on 3 March 2024", {}, {}, 0),
        ("I was admitted on 3 March 2024", {}, {"pii_profile": ["hipaa"]}, 1),
    ],
)
def test_patterns_are_those_of_the_settings(said, surrogates, settings, count):
    config = DataConfig(source="rows.jsonl", **settings)
    assert rows_with_pii([row(1, said)], surrogates, config) == count


def test_the_model_reads_some_rows_again(tmp_path):
    people = ["Hannah Murphy", "Jan Kowalczyk", "José García"]
    rows = [row(n, f"hello, my name is {people[n % 3]} and I lost my card") for n in range(30)]
    write_dataset(tmp_path / "rows.dataset", rows, [1.0] * len(rows))
    stored, _ = stored_dataset(tmp_path / "rows.dataset")
    config = DataConfig(source="rows.jsonl")
    assert found_again(stored, {}, config) == (30, 30)
    surrogates = {str(n): [("PERSON", people[n % 3])] for n in range(30)}
    assert found_again(stored, surrogates, config) == (0, 30)
    # Every third name was left.
    some = {key: found for key, found in surrogates.items() if int(key) % 3}
    assert found_again(stored, some, config) == (10, 30)
    assert found_again(stored, {}, DataConfig(source="rows.jsonl", pii_ner=False)) == (0, 0)
