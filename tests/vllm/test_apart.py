"""An adapter that ships beside its base on a real vLLM: decided, chosen, identified, released."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.deployment.conftest import files_below, right_share
from tests.lab.runs import Lab, broken, value
from tests.lab.tiny_task import INTENTS, OTHER_INTENTS, conversation, task_rows, train_adapter
from tests.vllm.reference import request

from tuneline.artifacts.deployment import CHOICE, ENGINE_IDENTITY
from tuneline.asking.models import candidate, server_of
from tuneline.models import load_tokenizer
from tuneline.models.base_model import digest_of
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.divergence import rows_of
from tuneline.serving.engines.engine import hash_files
from tuneline.serving.engines.vllm.engine import VllmServer
from tuneline.serving.gateway.process import GatewayProcess

NUMBERS = range(1000, 1012)


@pytest.fixture
def lab(tiny, tmp_path, tmp_path_factory, monkeypatch):
    """A run on vLLM that has trained and exported."""
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path_factory.getbasetemp() / "tiny-cache"))
    settings = {
        "base_model": str(tiny.base),
        "deployment": {
            "engine": "vllm",
            "variants": ["f16"],
            "multi_tenant": True,
            "max_adapter_slowdown": 0.95,
        },
    }
    lab = Lab(tmp_path, settings)
    lab.leave_dataset(task_rows({"train": 60, "validation": 30, "holdout": 16}))
    lab.leave("train", files_below(tiny.adapter, "adapter"))
    lab.leave("export_candidate", files_below(tiny.merged, "merged"))
    return lab


def test_the_candidate_is_the_base_with_the_adapter(lab, tiny):
    merging = lab.execute("adapter_merging")
    assert merging.verdict == "pass", broken(merging)
    assert value(merging, "decision") == "apart"
    chosen = lab.execute("production_quantization")
    assert broken(chosen) <= {"variants_measured"}
    lab.execute("build_engine")
    ctx = lab.context("determinism")
    choice = CHOICE.read(ctx)
    # The base's own files are not copied.
    assert choice.apart.base.key is None
    assert not list(lab.run.store.keys("bases"))
    adapter, _ = hash_files(tiny.adapter)
    assert choice.sha256 == digest_of({"base": choice.apart.base.digest, "adapter": adapter})
    assert ENGINE_IDENTITY.find(lab.run).apart == choice.apart
    model = candidate(ctx).model
    with server_of(model, lab.run.config.deployment) as server, server.client() as client:
        assert server.upstream("primary")["adapter"] == "tuned"
        texts = [client.chat(conversation(n)[0][:-1], max_tokens=32).text for n in NUMBERS]
    assert right_share(texts, NUMBERS) > 0.6


def test_distances_are_those_with_the_adapter(tiny):
    """Base and adapter against the merged checkpoint: one distribution, up to rounding."""
    engine, tokenizer = get_engine("vllm"), load_tokenizer(tiny.merged)
    sequences, starts = [], []
    for number in list(NUMBERS)[:3]:
        messages = conversation(number)[0]
        asked_text = tokenizer.apply_chat_template(
            messages[:-1], tokenize=False, add_generation_prompt=True
        )
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        sequences.append(tokenizer(text, add_special_tokens=False)["input_ids"])
        # The answer is what the adapter has learned; of the prompt it knows no more than the base.
        starts.append(len(tokenizer(asked_text, add_special_tokens=False)["input_ids"]))
    rows = rows_of(sequences, starts)
    asked = request(tiny.base, adapters={"tuned": tiny.adapter}, answers_with="tuned")
    beside = engine.distances(tiny.base, {"f16": tiny.base}, rows, asked)["f16"]
    merged = engine.distances(tiny.merged, {"f16": tiny.merged}, rows, request(tiny.merged))["f16"]
    alone = engine.distances(tiny.base, {"f16": tiny.base}, rows, request(tiny.base))
    # Most tokens of an answer are its form, which the base knows too: 1.09 against 1.05.
    assert beside.perplexity == pytest.approx(merged.perplexity, rel=0.005)
    assert alone["f16"].perplexity > 1.02 * merged.perplexity


def test_two_adapters_behind_the_gateway(tiny, tmp_path):
    other = train_adapter(tiny.base, tmp_path / "other", OTHER_INTENTS)
    adapters = {"ours@1": tiny.adapter, "theirs@1": other}
    with VllmServer(request(tiny.base, parallel=4, adapters=adapters)) as server:
        upstreams = [
            {
                "name": name,
                "base_url": f"{server.base_url}/v1",
                "model": server.alias,
                "adapter": f"{name}@1",
                "version": "1",
            }
            for name in ("ours", "theirs")
        ]
        models = [{"id": name, "chain": [name]} for name in ("ours", "theirs")]
        with GatewayProcess(tmp_path / "gateway", upstreams=upstreams, models=models) as gateway:

            def ask(model):
                def one(number):
                    prompt = conversation(number)[0][:-1]
                    answer = gateway.ask(model, prompt, max_tokens=32)
                    return answer.body["choices"][0]["message"]["content"]

                with ThreadPoolExecutor(4) as pool:
                    return list(pool.map(one, NUMBERS))

            with ThreadPoolExecutor(2) as teams:
                ours, theirs = teams.map(ask, ("ours@1", "theirs"))
            unknown = gateway.ask("theirs@2", conversation(1)[0][:-1], max_tokens=4)
    for answers, own, other in ((ours, INTENTS, OTHER_INTENTS), (theirs, OTHER_INTENTS, INTENTS)):
        assert right_share(answers, NUMBERS, own) > 0.6 > right_share(answers, NUMBERS, other)
    assert unknown.status == 404
