"""Recognise entities by any token-classification model of transformers.

A text that is longer than the model's context is read in windows that overlap; each word takes the
label from the window in which it is farthest from an edge. A word has the label of its first token,
as such models are trained ([Devlin et al., 2019](https://arxiv.org/abs/1810.04805), section 5.3).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tuneline.data.pii.hits import Hit
from tuneline.data.pii.ner.labels import begins, map_labels
from tuneline.errors import UserError, first_line

BATCH = 32
# Longer windows cost more memory and find no more names.
MOST_TOKENS = 512
# Tokens that neighbouring windows share.
OVERLAP = 64
# What may stand between two words of one entity.
_WITHIN = re.compile(r"[\s.,'’\-/@&#]{0,3}")
# Signs that belong to no entity at its ends.
_SIGNS = " \t\n.,;:!?\"'()[]"


class _Word(NamedTuple):
    start: int
    end: int
    label: str


class _Window(NamedTuple):
    """A part of a text: numbers of text and encoding, and tokens in it."""

    text: int
    number: int
    tokens: int


class TokenClassifier:
    """A token-classification model.

    Args:
        directory: its files: config.json, safetensors and a fast tokenizer.
        wanted: entity types that are looked for.
        labels: entity type by label without prefix, for labels that are not known.

    Attributes:
        ignored: its labels that name nothing that is looked for.

    Raises:
        UserError: if it can't be loaded, or no label names an entity type.
    """

    def __init__(self, directory: Path, wanted: Collection[str], labels: Mapping[str, str]) -> None:
        import torch

        self._tokenizer, self._model = _load(directory)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model.to(self._device).eval()
        self._names: dict[int, str] = self._model.config.id2label
        self._labels = map_labels(self._names.values(), labels, wanted, str(directory))
        self.ignored = self._labels.ignored
        context = getattr(self._model.config, "max_position_embeddings", MOST_TOKENS)
        # RoBERTa counts positions from its padding index on, so two of them hold no token.
        self._context = min(MOST_TOKENS, context - 2, self._tokenizer.model_max_length)

    def find(self, texts: Sequence[str]) -> list[list[Hit]]:
        """Return the entities of each text."""
        encoded = (
            self._tokenizer(
                list(texts),
                truncation=True,
                max_length=self._context,
                stride=min(OVERLAP, self._context // 4),
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            if texts
            else {"input_ids": [], "overflow_to_sample_mapping": []}
        )
        windows = [
            _Window(text, number, len(encoded["input_ids"][number]))
            for number, text in enumerate(encoded["overflow_to_sample_mapping"])
        ]
        # Windows of like length waste little on padding.
        windows.sort(key=lambda window: (window.tokens, window.number))
        words: list[dict[int, tuple[int, _Word]]] = [{} for _ in texts]
        for start in range(0, len(windows), BATCH):
            batch = windows[start : start + BATCH]
            for window, chosen in zip(batch, self._classify(encoded, batch), strict=True):
                self._note(words[window.text], encoded, window, chosen)
        return [
            list(self._entities(text, [word for _, word in (found[at] for at in sorted(found))]))
            for text, found in zip(texts, words, strict=True)
        ]

    def _classify(self, encoded: Any, batch: Sequence[_Window]) -> list[list[int]]:
        """Return the number of the likeliest label of each token of some windows."""
        import torch

        inputs = self._tokenizer.pad(
            {
                name: [encoded[name][window.number] for window in batch]
                for name in self._tokenizer.model_input_names
                if name in encoded
            },
            return_tensors="pt",
        ).to(self._device)
        with torch.inference_mode():
            chosen: list[list[int]] = self._model(**inputs).logits.argmax(-1).tolist()
        return chosen

    def _note(
        self,
        words: dict[int, tuple[int, _Word]],
        encoded: Any,
        window: _Window,
        chosen: Sequence[int],
    ) -> None:
        """Note the words of a window that are farther from its edges than in those before."""
        numbers = encoded.word_ids(window.number)
        offsets = encoded["offset_mapping"][window.number]
        seen: dict[int, tuple[int, _Word]] = {}
        for at, number in enumerate(numbers):
            if number is None:
                continue
            start, end = offsets[at]
            if number in seen:
                apart, word = seen[number]
                seen[number] = (apart, word._replace(end=end))
            else:
                # Padding stands on the left with some tokenizers.
                token = at + (len(chosen) - window.tokens if self._pads_left else 0)
                apart = min(at, window.tokens - at)
                seen[number] = (apart, _Word(start, end, self._names[chosen[token]]))
        for number, (apart, word) in seen.items():
            if number not in words or words[number][0] < apart:
                words[number] = (apart, word)

    @property
    def _pads_left(self) -> bool:
        return bool(self._tokenizer.padding_side == "left")

    def _entities(self, text: str, words: Sequence[_Word]) -> Iterator[Hit]:
        """Yield the runs of words with labels of one entity type."""
        run: Hit | None = None
        for word in words:
            entity = self._labels.entity.get(word.label)
            if run is not None:
                between = text[run.end : word.start]
                joined = _WITHIN.fullmatch(between) is not None
                if entity == run.entity and joined and (not begins(word.label) or not between):
                    run = Hit(run.start, word.end, run.entity)
                    continue
                yield from _trimmed(text, run)
            run = Hit(word.start, word.end, entity) if entity else None
        if run is not None:
            yield from _trimmed(text, run)


def _trimmed(text: str, hit: Hit) -> Iterator[Hit]:
    """Yield a hit without the signs at its ends."""
    piece = text[hit.start : hit.end]
    first, last = len(piece) - len(piece.lstrip(_SIGNS)), len(piece.rstrip(_SIGNS))
    if first < last:
        yield Hit(hit.start + first, hit.start + last, hit.entity)


def _load(directory: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model = AutoModelForTokenClassification.from_pretrained(
            directory, local_files_only=True, use_safetensors=True
        )
    except Exception as error:
        # A damaged file may raise any error of the library.
        raise UserError(
            f"data.pii_ner: {directory} can't be loaded as a token-classification model "
            f"({type(error).__name__}: {first_line(error)}); save one with save_pretrained"
        ) from None
    if not tokenizer.is_fast:
        raise UserError(
            f"data.pii_ner: {directory} has a slow tokenizer only; convert it so it has a "
            "tokenizer.json"
        )
    return tokenizer, model
