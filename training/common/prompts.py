"""The words of the miniature: training prompts, and the tokenizer and text encoder that read them.

A prompt names no style (the frame should come back as it is), one style, or two (their mean). Around the style stand
templates, things and filler words, so that free text such as "a watercolor painting of a person, soft colours" works
and words the model does not know leave it alone.
"""

import json
import random
import string
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .styles import NAMES, STYLES

CONTEXT = 48
WIDTH = 128
START, END = "<|startoftext|>", "<|endoftext|>"


def phrases(text: str, mark: str = ",") -> tuple[str, ...]:
    return tuple(" ".join(phrase.split()) for phrase in text.split(mark))


THINGS = phrases("""
    a person, a man, a woman, a face, a portrait, people, a child, a street, a city, a landscape, mountains, the sea,
    a room, an office, a cat, a dog, a house, a tree, flowers, a car, a bicycle, someone at a desk, a smiling man,
    a young woman, a person before a window, a man with glasses, a webcam picture, a scene, the sky, a garden,
    my friend, a musician
""")
FILLERS = phrases("""
    soft colours, soft colors, vivid colours, bright, dark, dramatic lighting, highly detailed, detailed, beautiful,
    masterpiece, best quality, 4k, 8k, sharp focus, warm light, cold light, moody, elegant, delicate, bold,
    loose brush strokes, thick strokes, fine lines, on paper, on canvas, by a great artist, trending on artstation,
    artwork, high contrast, muted colours, colourful, award winning, intricate, cinematic, smooth, textured,
    expressive, calm, summer, winter, at night, golden hour
""")
# {s} and {r} are words for styles, {t} a thing, {f} a filler.
ONE_STYLE = phrases(
    """
    {s} | {s} | {s} | {s} style | a {s} | {s} of {t} | a {s} of {t} | {s} painting of {t} | a {s} painting of {t} |
    {s} picture of {t} | {t} in the style of {s} | {t} in {s} style | {t}, {s} | {t} as a {s} | {t} as {s} |
    in {s} style | in the style of {s} | {t}, {s} style | {f} {s} | make it {s} | {s} art | {s} artwork of {t} |
    {s} drawing | {s} illustration of {t} | {s} portrait | a {s} portrait of {t} | the picture as {s} |
    turn me into a {s} | {t} painted as {s}
    """,
    "|",
)
TWO_STYLES = phrases(
    """
    {s} and {r} | {s}, {r} | {s} {r} | {s} with {r} | a mix of {s} and {r} | {t}, {s} and {r} | {s} + {r} |
    {s} of {t}, {r} style | {t} in the style of {s} and {r} | half {s} half {r}
    """,
    "|",
)
NO_STYLE = phrases(
    "{t} | a photo | a photo of {t} | photo | photograph of {t} | {t}, {f} | {f} | a picture of {t}", "|"
)


def nonsense(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9)))


def decorate(text: str, rng: random.Random) -> str:
    """The same prompt with filler and unknown words around it."""
    extra = [rng.choice(FILLERS) for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3)))]
    if rng.random() < 0.15:
        extra.append(" ".join(nonsense(rng) for _ in range(rng.randint(1, 3))))
    before = extra and rng.random() < 0.2
    parts = [*extra, text] if before else [text, *extra]
    return ", ".join(parts) if rng.random() < 0.8 else " ".join(parts)


def prompt_for(styles: tuple[int, ...], rng: random.Random) -> str:
    """A prompt that names these styles (indices into NAMES, none to two)."""
    words = [rng.choice(STYLES[NAMES[i]].words) for i in styles]
    # The plain name is what most people type.
    words = [NAMES[i] if rng.random() < 0.3 else word for i, word in zip(styles, words, strict=True)]
    thing, filler = rng.choice(THINGS), rng.choice(FILLERS)
    if not words:
        return "" if rng.random() < 0.6 else decorate(rng.choice(NO_STYLE).format(t=thing, f=filler), rng)
    if len(words) == 1:
        return decorate(rng.choice(ONE_STYLE).format(s=words[0], t=thing, f=filler), rng)
    return decorate(rng.choice(TWO_STYLES).format(s=words[0], r=words[1], t=thing, f=filler), rng)


@dataclass(frozen=True)
class TextParts:
    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel

    def ids(self, prompts: list[str]):
        """int64 [N, CONTEXT], padded and cut as the pipelines do."""
        return self.tokenizer(
            prompts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt"
        ).input_ids


def make_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose merges were learnt from the training prompts; any other text falls back to bytes."""
    rng = random.Random(0)
    corpus = [prompt_for((), rng) for _ in range(4000)]
    corpus += [prompt_for((rng.randrange(len(NAMES)),), rng) for _ in range(12000)]
    byte_level = pre_tokenizers.ByteLevel.alphabet()
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1400,
        initial_alphabet=sorted(byte_level),
        end_of_word_suffix="</w>",
        min_frequency=12,
    )
    bpe.train_from_iterator(corpus, trainer)
    merges = [tuple(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    symbols = sorted(byte_level)
    tokens = symbols + [s + "</w>" for s in symbols] + ["".join(m) for m in merges] + [START, END]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT)


def make_text(folder: Path) -> TextParts:
    """An untrained encoder and its tokenizer, which is kept in `folder`: its ids must not change between stages."""
    if not folder.exists():
        make_tokenizer().save_pretrained(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return TextParts(tokenizer, CLIPTextModel(config))
