"""Text -> conditioning tensors, encoded once and remembered."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer


class PromptEncoder:
    """CLIP hidden states of a prompt, as diffusers' Stable Diffusion pipelines compute them.

    Prompts longer than the tokenizer's window are cut there, as in those pipelines. `forget()` after the text
    encoder's weights have changed.
    """

    CACHE_SIZE = 256

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel):
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self._encode = lru_cache(self.CACHE_SIZE)(self._encode_uncached)

    def __call__(self, text: str) -> Tensor:
        """[1, tokens, width] in the text encoder's dtype, on its device."""
        return self._encode(text)

    def forget(self) -> None:
        self._encode.cache_clear()

    @torch.inference_mode()
    def _encode_uncached(self, text: str) -> Tensor:
        tokens = self.tokenizer(
            text,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids.to(self.text_encoder.device))[0]
