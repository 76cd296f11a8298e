"""Call llama.cpp's C API in the library inside the xllamacpp wheel.

The wheel's Python API gives no access to logits, but the library exports llama.h, so these are
the engine's own numbers for the bytes that ship. Structures are passed by value; only the first
fields of one are set, after they were compared with their documented defaults, so a version with
another layout is refused instead of misread. Source: llama.cpp, include/llama.h.

A failed assertion in C++ ends the process, so use this in a child process, as
`tuneline.serving.engines.llama_cpp.scoring` does.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tuneline.errors import TunelineError, UserError

_WORDS = 128  # more than either structure has; the callee reads and writes its own size only


class _Params(ctypes.Structure):
    """llama_model_params or llama_context_params, as 32-bit words."""

    _fields_ = [("word", ctypes.c_uint32 * _WORDS)]


class _Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


# The head of llama_context_params and its defaults.
_CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_rs_seq": 0,
    "n_outputs_max": 0,
    "n_outputs_max_per_seq": 1,
    "n_threads": 4,
    "n_threads_batch": 4,
}
_WORD_OF = {name: index for index, name in enumerate(_CONTEXT_DEFAULTS)}
# Further down, the types of the cache and the flags with their defaults. The flags are bytes:
# embeddings, offload_kqv, no_perf, op_offload; swa_full, kv_unified.
_FURTHER_DEFAULTS = {26: 1, 27: 1, 34: 0x01010100, 35: 0x00000001}
_KV_UNIFIED = (35, 0x0100)
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


_POINTER, _INT, _TEXT, _BOOL = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p, ctypes.c_bool
_INTS, _FLOATS = ctypes.POINTER(_INT), ctypes.POINTER(ctypes.c_float)
# The functions that are called, with the types of their results and their arguments.
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_log_set": (None, [_LOG, _POINTER]),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (_Params, []),
    "llama_context_default_params": (_Params, []),
    "llama_model_load_from_file": (_POINTER, [_TEXT, _Params]),
    "llama_model_free": (None, [_POINTER]),
    "llama_init_from_model": (_POINTER, [_POINTER, _Params]),
    "llama_free": (None, [_POINTER]),
    "llama_adapter_lora_init": (_POINTER, [_POINTER, _TEXT]),
    "llama_set_adapters_lora": (
        _INT,
        [_POINTER, ctypes.POINTER(_POINTER), ctypes.c_size_t, _FLOATS],
    ),
    "llama_model_get_vocab": (_POINTER, [_POINTER]),
    "llama_vocab_n_tokens": (_INT, [_POINTER]),
    "llama_tokenize": (_INT, [_POINTER, _TEXT, _INT, _INTS, _INT, _BOOL, _BOOL]),
    "llama_batch_init": (_Batch, [_INT, _INT, _INT]),
    "llama_batch_free": (None, [_Batch]),
    "llama_decode": (_INT, [_POINTER, _Batch]),
    "llama_get_logits": (_FLOATS, [_POINTER]),
    "llama_get_memory": (_POINTER, [_POINTER]),
    "llama_memory_clear": (None, [_POINTER, _BOOL]),
}


class LlamaLibrary:
    """The loaded library; it keeps messages instead of printing them."""

    def __init__(self) -> None:
        """Load the library.

        Raises:
            TunelineError: if the installed xllamacpp has another interface.
        """
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import xllamacpp

        self.version = str(xllamacpp.__version__)
        self.lib: Any = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
        self.messages: list[str] = []
        self._log = _LOG(lambda _, text, __: self.messages.append(text.decode(errors="replace")))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self.lib, name, None)
            if function is None:
                raise self._unknown(f"it does not export {name}")
            function.restype, function.argtypes = result, arguments
        words = self.lib.llama_context_default_params().word
        expected = {**dict(enumerate(_CONTEXT_DEFAULTS.values())), **_FURTHER_DEFAULTS}
        if changed := {at: words[at] for at, value in expected.items() if words[at] != value}:
            raise self._unknown(f"its context parameters hold {changed}")
        self.lib.llama_log_set(self._log, None)
        self.lib.llama_backend_init()

    def _unknown(self, what: str) -> TunelineError:
        return TunelineError(
            f"xllamacpp {self.version} has another llama.cpp interface than this code supports "
            f"({what}); install the version that requirements/ml.txt was tested with"
        )


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a batch, its place in its sequences, and if the logits after it are returned.

    Several sequences may share it as a part of their beginning.
    """

    id: int
    position: int
    sequences: tuple[int, ...]
    wanted: bool


class LlamaModel:
    """A GGUF model in this process: token ids in, logits out."""

    def __init__(
        self,
        library: LlamaLibrary,
        path: Path,
        *,
        context: int = 2048,
        threads: int = 1,
        adapter: Path | None = None,
        sequences: int = 1,
    ) -> None:
        """Load a model, with a GGUF adapter or without one.

        Args:
            context: tokens of the largest batch, of all its sequences together.
            sequences: most sequences in one batch.

        Raises:
            UserError: if a file can't be loaded.
        """
        self._library = library
        lib = library.lib
        self.path = path
        self._context_size = context
        self._context = self._batch = None
        self._model = lib.llama_model_load_from_file(
            str(path).encode(), lib.llama_model_default_params()
        )
        if not self._model:
            raise self._cannot_load(path)
        params = lib.llama_context_default_params()
        # All logits of one sequence are needed, in batches of the whole context.
        for name in ("n_ctx", "n_batch", "n_outputs_max", "n_outputs_max_per_seq"):
            params.word[_WORD_OF[name]] = context
        for name in ("n_threads", "n_threads_batch"):
            params.word[_WORD_OF[name]] = threads
        if sequences > 1:
            params.word[_WORD_OF["n_seq_max"]] = sequences
            # Sequences that share their beginning need one cache for all.
            word, flag = _KV_UNIFIED
            params.word[word] |= flag
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            self.close()
            raise UserError(f"llama.cpp can't make a context of {context} tokens for {path}")
        if adapter is not None:
            self._apply(adapter)
        self._batch = lib.llama_batch_init(context, 0, sequences)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.vocab_size = int(lib.llama_vocab_n_tokens(self._vocab))

    def _apply(self, adapter: Path) -> None:
        lib = self._library.lib
        # The adapter belongs to the model and is freed with it.
        loaded = lib.llama_adapter_lora_init(self._model, str(adapter).encode())
        if not loaded:
            self.close()
            raise self._cannot_load(adapter)
        adapters, scales = (ctypes.c_void_p * 1)(loaded), (ctypes.c_float * 1)(1.0)
        if lib.llama_set_adapters_lora(self._context, adapters, 1, scales) != 0:
            self.close()
            raise UserError(f"llama.cpp can't apply {adapter} to {self.path}")

    def _cannot_load(self, path: Path) -> UserError:
        lines = [line.strip() for line in self._library.messages]
        for word in ("error", "failed"):
            if found := [line for line in lines if word in line.lower()]:
                return UserError(f"llama.cpp can't load {path}: {found[-1]}")
        return UserError(f"llama.cpp can't load {path}: no reason given")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model."""
        lib = self._library.lib
        if self._batch is not None:
            lib.llama_batch_free(self._batch)
        if self._context:
            lib.llama_free(self._context)
        if self._model:
            lib.llama_model_free(self._model)
        self._batch = self._context = self._model = None

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text without BOS; special tokens are recognised."""
        raw = text.encode()
        # Byte-level vocabularies give at most one token for each byte.
        room = len(raw) + 8
        ids = (ctypes.c_int32 * room)()
        add_bos, special = False, True
        count = self._library.lib.llama_tokenize(
            self._vocab, raw, len(raw), ids, room, add_bos, special
        )
        if count < 0:
            raise TunelineError(f"llama.cpp could not tokenize a text of {len(raw)} bytes")
        return list(ids[:count])

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits after each token of a sequence, of shape (tokens, vocab_size)."""
        return self.evaluate([Token(int(t), at, (0,), True) for at, t in enumerate(tokens)])

    def evaluate(self, tokens: Sequence[Token]) -> NDArray[np.float32]:
        """Return the logits after each wanted token, of shape (wanted tokens, vocab_size).

        The tokens of each sequence must be in order.

        Raises:
            UserError: if there are none, or more than `context`.
            TunelineError: if the engine failed.
        """
        if not 0 < len(tokens) <= self._context_size:
            raise UserError(
                f"a sequence of {len(tokens)} tokens does not fit a context of {self._context_size}"
            )
        lib, batch = self._library.lib, self._batch
        assert batch is not None
        for index, token in enumerate(tokens):
            batch.token[index] = token.id
            batch.pos[index] = token.position
            batch.n_seq_id[index] = len(token.sequences)
            for place, sequence in enumerate(token.sequences):
                batch.seq_id[index][place] = sequence
            batch.logits[index] = token.wanted
        batch.n_tokens = len(tokens)
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        code = lib.llama_decode(self._context, batch)
        if code != 0:
            raise TunelineError(f"llama.cpp failed to evaluate {self.path} (code {code})")
        pointer = lib.llama_get_logits(self._context)
        wanted = sum(token.wanted for token in tokens)
        return np.ctypeslib.as_array(pointer, (wanted, self.vocab_size)).copy()
