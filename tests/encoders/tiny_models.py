"""Random CLIP, SigLIP and BERT models of a few kilobytes, saved as a hub would: config, safetensors, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers as tf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ["a", "the", "of", "dog", "child", "woman", "cook", "throws", "paints", "holds", "ball", "fence", "dish"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
_SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}


def write_tokenizer(folder: Path, longest: int = 16) -> None:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tf.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        model_max_length=longest,
    ).save_pretrained(folder)


def _preprocessor(folder: Path, **changes: object) -> None:
    settings = {
        "do_resize": True,
        "size": {"shortest_edge": 32},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        **changes,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def clip(folder: Path, seed: int = 0, depth: int = 3) -> tf.CLIPModel:
    """A CLIP of 3 blocks: 17 tokens of width 32, projected to 24."""
    torch.manual_seed(seed)
    n_words = len(SPECIAL + WORDS)
    text = {**_SMALL, "num_hidden_layers": 2, "vocab_size": n_words, "max_position_embeddings": 16}
    text |= {"eos_token_id": 3, "pad_token_id": 0, "bos_token_id": 2}
    vision = {**_SMALL, "num_hidden_layers": depth, "image_size": 32, "patch_size": 8}
    model = tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
    _roughen(model)
    model.save_pretrained(folder)
    _preprocessor(folder)
    write_tokenizer(folder)
    return model


def siglip(folder: Path, seed: int = 0) -> tf.SiglipModel:
    torch.manual_seed(seed)
    n_words = len(SPECIAL + WORDS)
    text = {**_SMALL, "num_hidden_layers": 2, "vocab_size": n_words, "max_position_embeddings": 16, "pad_token_id": 0}
    text |= {"projection_size": 32, "eos_token_id": 3, "bos_token_id": 2}
    vision = {**_SMALL, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
    model = tf.SiglipModel(tf.SiglipConfig(text_config=text, vision_config=vision)).eval()
    _roughen(model)
    model.save_pretrained(folder)
    _preprocessor(
        folder,
        size={"height": 32, "width": 32},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    write_tokenizer(folder)
    return model


def bert(folder: Path, seed: int = 0) -> tf.BertModel:
    torch.manual_seed(seed)
    config = tf.BertConfig(
        **_SMALL, num_hidden_layers=2, vocab_size=len(SPECIAL + WORDS), max_position_embeddings=20, pad_token_id=0
    )
    model = tf.BertModel(config).eval()
    _roughen(model)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def _roughen(model: torch.nn.Module) -> None:
    """Move every weight away from its initial value: a layer norm of ones and zeros hides its absence."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
