"""`tuneline score`: ask a model the training or validation rows of a dataset, and score it.

The hold-out is read through a run alone, where its ledger records who did. A call that was stopped
goes on where it was if it is given the same `--out`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tuneline.asking.asking import KeptAnswers, LocalModel, Subject, collect, endpoint_of
from tuneline.asking.models import hashed, hashed_adapter, installed
from tuneline.asking.rows import of_split
from tuneline.asking.tasks import choose_task, judge
from tuneline.config import DeploymentConfig
from tuneline.config.evaluation import Metric, SlicesConfig
from tuneline.data.tables.rows import fetch_dataset, read_dataset
from tuneline.errors import UserError
from tuneline.evaluation.scoring.answer_tables import score_table
from tuneline.evaluation.scoring.slices import find_slices, slice_sentence, slices_document
from tuneline.gguf.export import export_lora_gguf
from tuneline.models import resolve
from tuneline.terminal import track

Log = Callable[[str], object]


@dataclass(frozen=True)
class ScoreTarget:
    """What the command line says of a model: an endpoint, a GGUF file, a folder, a base's address.

    The adapter is a folder of PEFT or a GGUF file; `api_key_env` names the variable with the key.
    """

    model: str
    adapter: Path | None
    api_key_env: str | None
    deployment: DeploymentConfig


def subject_of(asked: ScoreTarget, scratch: Path, log: Log) -> Subject:
    """Return the model that an address names; an adapter is converted in `scratch` if need be.

    UserError if the address, the adapter or the key is wrong, or the engine is not here.
    """
    if asked.model.startswith(("http://", "https://")):
        if asked.adapter:
            raise UserError("--adapter can't be sent to an endpoint; name its model id there")
        return endpoint_of(asked.model, asked.api_key_env, asked.deployment.parallel)
    path, engine = Path(asked.model), installed(asked.deployment.engine)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"{path} does not exist; name a GGUF file")
        if engine.form != "gguf":
            raise UserError(f"{engine.name} does not load GGUF files; give --engine llama_cpp")
        if asked.adapter and asked.adapter.is_dir():
            raise UserError(f"--adapter {asked.adapter}: with a GGUF file give the adapter's too")
        model = hashed(engine.name, path)
        adapter = asked.adapter
    else:
        base = resolve(asked.model, log=log)
        model, adapter = engine.untuned(base, log), asked.adapter
        if adapter and adapter.is_dir() and engine.form == "gguf":
            adapter = scratch / "adapter.gguf"
            export_lora_gguf(asked.adapter or adapter, base.path, adapter)
    if adapter is not None:
        if not adapter.exists():
            raise UserError(f"--adapter {adapter} does not exist")
        model = model.beside(hashed_adapter(adapter))
    return LocalModel(model, asked.deployment)


def score(
    asked: ScoreTarget,
    data: str,
    out: Path,
    *,
    split: str,
    metric: Literal["auto"] | Metric,
    label_field: str | None,
    max_tokens: int,
) -> dict[str, Any]:
    """Score a model, write `answers.parquet` and `slices.json`, and return what `--json` shows.

    `data` is the path, `file://` or `s3://` address of a `dataset.parquet`. UserError if the model
    or the dataset is wrong, or has no row of the split.
    """
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory(prefix="tuneline-score-") as folder:
        rows, _ = read_dataset(fetch_dataset(data, Path(folder), f"--data {data}"))
        rows = of_split(rows, split)
        if not rows:
            raise UserError(f"--data {data} has no {split} row; choose another --split")
        subject = subject_of(asked, Path(folder), partial(print, file=sys.stderr, flush=True))
        expected = [row.answer for row in rows]
        task = choose_task(metric, label_field, expected)
        out.mkdir(parents=True, exist_ok=True)
        with KeptAnswers(out / "kept_answers.jsonl") as kept_answers:
            answers, _ = collect(
                subject,
                [row.prompt for row in rows],
                [max_tokens] * len(rows),
                kept_answers,
                progress=lambda batches: track(batches, len(batches), "batches of prompts"),
            )
    judged, config = judge(task, answers, expected), SlicesConfig()
    found, slices = judged.interval, find_slices(rows, judged.scores, config)
    table = score_table(rows, {"model": judged}, model_cut=[answer.cut for answer in answers])
    pq.write_table(table, out / "answers.parquet")
    document = slices_document(slices, config)
    (out / "slices.json").write_text(json.dumps(document, indent=1, ensure_ascii=False))
    return {
        "model": asked.model,
        "metric": task.name,
        "rows": len(rows),
        "value": round(found.value, 4),
        "lower": round(found.lower, 4),
        "upper": round(found.upper, 4),
        "slices_clearly_worse": [asdict(each) for each in slices.worse],
        "sentence": f"{task.name} on {len(rows)} {split} rows: {found.text()}; "
        f"{slice_sentence(slices)}",
    }
