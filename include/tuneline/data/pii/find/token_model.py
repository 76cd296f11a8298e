"""Find personal data by a token classifier: in the ONNX format on one thread, or by transformers.

Such models hesitate between kinds of numbers and repeat "B-" inside a word, so whole words are
judged, by the probability of any kind at all (1 - P(O)) of their surest piece; the kind is the one
that is likeliest over the word. All scores fall as a text grows, hence short windows that overlap.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tuneline.data.pii.find.entities import map_labels
from tuneline.errors import UserError, first_line
from tuneline.models.base_model import INT8, NETWORKS

# Pieces of a window and those that neighbours share; a second look cuts at other places.
WINDOW, SHIFTED_WINDOW, OVERLAP = 128, 104, 32
# Windows of a batch; larger ones outgrow the cache of a core. A network with 8-bit weights takes
# the scale of its inputs from the whole batch: it reads one window at a time, so that what it says
# of a text never depends on others, and equal rows stay equal.
BATCH = 8
# No vocabulary knows a word of this length, and words with a lower score are not even noted.
LONGEST_RUN, LEAST = 100, 0.02
# "j.kwan@tide.com" and "555-0134" are one word, without the full stop of the sentence; so is each
# character of Thai, Chinese and Japanese, which put no spaces between words.
UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+(?:[.@-][^\W{UNSPACED}]+)*")
_LONG_RUN = re.compile(rf"[^\s{UNSPACED}]{{{LONGEST_RUN},}}")

Row = np.ndarray[Any, np.dtype[np.float32]]
# Gives logits (windows x pieces x labels) for the numbers of pieces and their mask.
Network = Callable[[Any, Any], Row]


class Word(NamedTuple):
    """A word that may be personal data: its characters, likeliest entity type and 1 - P(O)."""

    start: int
    end: int
    entity: str
    score: float


class TokenModel:
    """A token classifier (`EntityModel`): config.json, tokenizer.json, a network or safetensors."""

    def __init__(
        self, directory: Path, wanted: Collection[str], labels: Mapping[str, str], *, shifted: bool
    ) -> None:
        self._tokenizer, self._network, names, context = _load(directory)
        self._batch = 1 if (directory / INT8).is_file() else BATCH
        size = min(SHIFTED_WINDOW if shifted else WINDOW, context)
        self._tokenizer.enable_truncation(size, stride=min(OVERLAP, size // 2))
        mapped = map_labels(names, labels, wanted, str(directory))
        self.ignored = mapped.ignored
        self._entities = sorted(set(mapped.entity.values()))
        # Labels x entity types: adds up the labels of a type.
        rows = [[mapped.entity.get(name) == kind for kind in self._entities] for name in names]
        self._sums = np.array(rows, np.float32)

    def words(self, texts: Sequence[str]) -> list[list[Word]]:
        """See `models.EntityModel`; equal windows are read once, very long words not at all."""
        evidence = [np.zeros((len(text), len(self._entities)), np.float32) for text in texts]
        places: dict[tuple[int, ...], list[tuple[int, Any]]] = {}
        for number, text in enumerate(texts):
            # One by one: the tokenizer's own threads and worker processes don't agree.
            whole = self._tokenizer.encode(_LONG_RUN.sub(lambda run: " " * len(run[0]), text))
            for part in (whole, *whole.overflowing):
                places.setdefault(tuple(part.ids), []).append((number, part))
        # Windows of like length waste little on padding.
        windows = sorted(places, key=len)
        for first in range(0, len(windows), self._batch):
            batch = windows[first : first + self._batch]
            for window, rows in zip(batch, self._probabilities(batch), strict=True):
                for number, part in places[window]:
                    _note(evidence[number], part.offsets, rows)
        return [list(self._read(text, rows)) for text, rows in zip(texts, evidence, strict=True)]

    def _probabilities(self, batch: Sequence[Sequence[int]]) -> Row:
        """Return windows x pieces x entity types; what is missing to 1 is that of no type."""
        ids = np.zeros((len(batch), max(map(len, batch))), np.int64)
        mask = np.zeros_like(ids)
        for row, (own, pieces) in enumerate(zip(ids, batch, strict=True)):
            own[: len(pieces)] = pieces
            mask[row, : len(pieces)] = 1
        logits = self._network(ids, mask)
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        rows: Row = odds / odds.sum(-1, keepdims=True) @ self._sums
        return rows

    def _read(self, text: str, rows: Row) -> Iterator[Word]:
        scores = rows.sum(1)
        for match in _WORD.finditer(text) if scores.max(initial=0) >= LEAST else ():
            own = slice(*match.span())
            if (score := float(scores[own].max())) >= LEAST:
                yield Word(*match.span(), self._entities[int(rows[own].sum(0).argmax())], score)


def _note(evidence: Row, offsets: Sequence[tuple[int, int]], rows: Row) -> None:
    """Note the pieces of a window; where windows overlap, the surer one counts."""
    for (start, end), row in zip(offsets, rows, strict=False):
        # [CLS] and [SEP] are empty.
        if end > start and row.sum() > evidence[start].sum():
            evidence[start:end] = row


def _load(directory: Path) -> tuple[Any, Network, list[str], int]:
    """Return tokenizer, network, the names of its labels, and the most pieces that it reads."""
    from tokenizers import Tokenizer

    weights = next((path for name in NETWORKS if (path := directory / name).is_file()), None)
    try:
        config = json.loads((directory / "config.json").read_text("utf-8"))
        # transformers leaves these two names out.
        labels = config.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
        names = [labels[str(number)] for number in range(len(labels))]
        # RoBERTa counts positions from its padding index on, so two of them hold no token.
        context = int(config.get("max_position_embeddings", WINDOW + 2)) - 2
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        network = _of_transformers(directory) if weights is None else _onnx(weights)
    except Exception as error:
        # A damaged file may raise any error of the libraries.
        raise UserError(
            f"data.pii_ner: {directory} can't be loaded as a token classifier "
            f"({type(error).__name__}: {first_line(error)}); fetch it again, or save it with "
            "save_pretrained"
        ) from None
    tokenizer.no_padding()
    return tokenizer, network, names, context


def _onnx(weights: Path) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(weights), options, providers=["CPUExecutionProvider"]
    )
    inputs = {given.name for given in session.get_inputs()}

    def logits(ids: Any, mask: Any) -> Row:
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        found: Row = session.run(None, {name: given[name] for name in inputs})[0]
        return found

    return logits


def _of_transformers(directory: Path) -> Network:
    # PyTorch takes seconds to import.
    import torch
    from transformers import AutoModelForTokenClassification

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForTokenClassification.from_pretrained(
        directory, local_files_only=True, use_safetensors=True
    ).to(device)

    def logits(ids: Any, mask: Any) -> Row:
        with torch.inference_mode():
            given = (torch.from_numpy(array).to(device) for array in (ids, mask))
            found: Row = model(*given).logits.float().cpu().numpy()
        return found

    return logits
