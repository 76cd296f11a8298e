"""Build a tiny token-classification model that knows given words, without any training."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def save_tiny_model(
    directory: Path, label_of: dict[str, str], labels: list[str], context: int = 40
) -> Path:
    """Save a model that gives each known word its label, and any other word the first label.

    Its one layer does nothing (all its outputs are zero), so the label depends on the word alone.
    """
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *label_of])}
    _save_tokenizer(directory, vocabulary)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=context,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    model = BertForTokenClassification(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.ones_like(weight) if "LayerNorm.weight" in name else weight * 0)
        model.classifier.bias[0] = 10
        embedding = model.bert.embeddings.word_embeddings.weight
        for word, label in label_of.items():
            number = labels.index(label)
            # Layer norm keeps the sign of a single large entry.
            embedding[vocabulary[word], number] = 1.0
            model.classifier.weight[number, number] = 10.0
    model.save_pretrained(directory)
    return directory


def _save_tokenizer(directory: Path, vocabulary: dict[str, int]) -> None:
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(directory)
