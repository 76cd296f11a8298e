"""Forecast the pods, hours and cost of a run before it starts, from sizes alone.

gradient_accumulation replaces the hours by measured ones before the first step of training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tuneline.catalogue import STEPS, Size
from tuneline.config import PipelineConfig
from tuneline.data.sources.find_files import find_here
from tuneline.training.resources.estimate import HOUR, devices_of, duration, money, price_of

# Dense bf16 peaks by a word of `deployment.target_hardware`, from NVIDIA's data sheets, and the
# share of a peak that training reaches (Chowdhery et al., PaLM, table 3: 0.21 to 0.46).
_PEAKS = {"h200": 989e12, "h100": 989e12, "a100": 312e12, "l40s": 362e12, "a10": 125e12}
_UTILISATION = 0.35
# Bytes of a token in most languages and tokenizers.
_TOKEN_BYTES = 4
# NF4 with double quantisation (Dettmers et al., QLoRA, section 3), and bf16.
_NF4_BITS, _BF16_BITS = 4.127, 16
_GIB = 2**30


@dataclass(frozen=True)
class Forecast:
    """The sizes of a run; `seconds` of training is None if it can't be forecast."""

    config: PipelineConfig
    parameters: int
    seconds: float | None

    @property
    def cost(self) -> float:
        """Price of the training, in `governance.currency`."""
        hours = (self.seconds or 0) / HOUR
        return hours * devices_of(self.config) * price_of(self.config)

    def sentence(self) -> str:
        """Return memory, hours and cost in one sentence."""
        sizes = ", ".join(f"{size} {self.config.pods_of(size).memory}" for size in Size)
        text = f"Memory of pods: {sizes}."
        if (shards := self.config.evaluation.shards) > 1:
            gpus = shards * self.config.pods_of(Size.ENGINE).gpus
            text += f" {shards} pods ({gpus} GPUs) answer the hold-out, in 1/{shards} of the time."
        if self.config.data.engine == "spark":
            text += " The data phase runs on the Spark that SPARK_REMOTE of its pods names."
        if self.seconds is None:
            return f"{text} gradient_accumulation will measure how long training takes."
        cost = money(self.cost, self.config.governance.currency)
        return f"{text} Training takes about {duration(self.seconds)} (a third to 3 times), {cost}."

    def lines(self) -> Iterator[str]:
        """Return the forecast as a table of the classes of steps, and what follows from it."""
        count = Counter(step.size for step in STEPS)
        yield f"{'steps':<8} {'count':>5} {'memory':>8} {'cpu':>4} {'gpus':>4}  image"
        for size in Size:
            pod = self.config.pods_of(size)
            image = pod.gpu_image if pod.gpus else pod.image
            yield f"{size:<8} {count[size]:>5} {pod.memory:>8} {pod.cpu:>4} {pod.gpus:>4}  {image}"
        known = f"{self.parameters / 1e9:.3g} billion parameters"
        yield f"base model: {known if self.parameters else 'can not be seen from here'}"
        if self.parameters and self.config.pods_of(Size.TRAIN).gpus:
            held = gpu_gib(self.config, self.parameters)
            yield f"weights on each GPU in training: {held:.1f} GiB"
        yield self.sentence()


def forecast(config: PipelineConfig, parameters: int, tokens: int | None = None) -> Forecast:
    """Forecast a run.

    Args:
        config: its settings, with pods sized for the base model.
        parameters: those of the base model; 0: unknown.
        tokens: those of the dataset; None: by the bytes of its files, if they are local.

    Without GPUs, base model or tokens it has no time: CPUs differ too much.
    """
    tokens = _tokens_of(config) if tokens is None else tokens
    if tokens is None or not parameters or not config.pods_of(Size.TRAIN).gpus:
        return Forecast(config, parameters, None)
    data, training = config.data, config.training
    trained = tokens * (1 - data.holdout_share - data.validation_share)
    if data.max_train_rows is not None:
        trained = min(trained, data.max_train_rows * data.max_tokens)
    trained *= training.epochs
    # Forward, and backward to the adapter: the base's weights have no gradients.
    work = (6 if training.gradient_checkpointing else 4) * parameters * trained
    return Forecast(config, parameters, work / (_speed(config) * devices_of(config)))


def gpu_gib(config: PipelineConfig, parameters: int) -> float:
    """Return the GiB that the base's weights take on each GPU in training.

    FSDP2 shards the weights of LoRA; QLoRA keeps the whole base on each GPU.
    """
    bits = _NF4_BITS if config.training.qlora else _BF16_BITS / config.world_size
    return parameters * bits / 8 / _GIB


def _tokens_of(config: PipelineConfig) -> int | None:
    files = find_here(config.data.sources)
    if not files or any(file.local is None for file in files):
        return None
    return sum(f.local.stat().st_size for f in files if f.local is not None) // _TOKEN_BYTES


def _speed(config: PipelineConfig) -> float:
    """Return the operations per second of a GPU; of one that is not known, those of the slowest."""
    words = config.deployment.target_hardware.lower()
    known = [peak for name, peak in _PEAKS.items() if name in words]
    return _UTILISATION * (known[0] if known else min(_PEAKS.values()))
