"""Tiny untrained models, written once a session to a folder that goes with it; texts and images to feed them."""

import io
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch

from fedray.encoders._torchvision import mend_torchvision
from tests.bench import small_clip

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
WORDS = "the a of red green blue toy story space night river old man sea last first love war star"


@cache
def _root():
    return tempfile.TemporaryDirectory(prefix="fedray-models-")


def place(name):
    return Path(_root().name) / name


@cache
def open_clip_folder():
    return small_clip.write(place("clip"), TINY_CLIP)


def _transformers():
    mend_torchvision()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    return transformers


def _tokenizer(t):
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocab = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{c}" for c in letters),
        *dict.fromkeys(WORDS),
    ]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(vocab))}
    return t.BertTokenizer(vocab=vocab, model_max_length=24), len(vocab)


def _save(folder, *parts):
    for part in parts:
        part.save_pretrained(folder)
    return folder


@cache
def bert_folder():
    t = _transformers()
    tokenizer, size = _tokenizer(t)
    config = t.BertConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    return _save(place("bert"), t.BertModel(config), tokenizer)


def _processor(t):
    return t.ViTImageProcessorPil(size={"height": 32, "width": 32})


@cache
def vit_folder():
    t = _transformers()
    config = t.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        initializer_range=0.5,
    )
    return _save(place("vit"), t.ViTModel(config), _processor(t))


@cache
def convnext_folder():
    """A model without a class token."""
    t = _transformers()
    config = t.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], initializer_range=0.5)
    return _save(place("convnext"), t.ConvNextModel(config), _processor(t))


@cache
def two_towers_folder():
    t = _transformers()
    tokenizer, size = _tokenizer(t)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    config = t.CLIPConfig(
        text_config={**shape, **ends, "vocab_size": size, "max_position_embeddings": 20},
        vision_config={**shape, "image_size": 32, "patch_size": 8},
        projection_dim=12,
        initializer_factor=5.0,
    )
    return _save(place("two_towers"), t.CLIPModel(config), tokenizer, _processor(t))


def texts(n):
    """Of one word up to more than a tiny model reads."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS.split(), rng.integers(1, 30))) for _ in range(n)]


def pictures(n, sizes=((40, 30), (32, 32), (20, 50))):
    return [picture(seed, sizes[seed % len(sizes)]) for seed in range(n)]


def picture(seed, size=(40, 30), kind="PNG", mode="RGB"):
    """The bytes of a file of blurred noise."""
    return file_of(noise(seed, size).convert(mode), kind)


def noise(seed, size=(40, 30)):
    from PIL import Image

    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(small).resize(size)


def file_of(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
