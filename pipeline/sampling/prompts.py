"""Text -> conditioning tensors, encoded once and remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import CLIPTextModel, CLIPTokenizer

from .model import Family


@dataclass(frozen=True)
class PromptEmbedding:
    """states: [1, tokens, width]; pooled: [1, width], where the family takes one."""

    states: Tensor
    pooled: Tensor | None

    def zeros(self) -> PromptEmbedding:
        return PromptEmbedding(
            torch.zeros_like(self.states), None if self.pooled is None else torch.zeros_like(self.pooled)
        )


class PromptEncoder:
    """CLIP hidden states of a prompt, as diffusers' pipelines of the family compute them.

    Prompts longer than the tokenizer's window are cut there, as in those pipelines. `forget()` after a text encoder's
    weights have changed. A text encoder that is elsewhere than on `device` visits it while it encodes.
    """

    CACHE_SIZE = 256

    def __init__(
        self,
        family: Family,
        tokenizers: Sequence[CLIPTokenizer],
        text_encoders: Sequence[CLIPTextModel],
        device: torch.device,
    ):
        self.family, self.device = family, device
        self.tokenizers, self.text_encoders = tuple(tokenizers), tuple(text_encoders)
        self._encode = lru_cache(self.CACHE_SIZE)(self._encode_uncached)

    def __call__(self, prompt: str) -> PromptEmbedding:
        """In the text encoders' dtype, on the device."""
        return self._encode(prompt)

    def negative(self, prompt: str) -> PromptEmbedding:
        """The same for what is to be avoided."""
        return self(prompt).zeros() if self.family.empty_is_zero and not prompt else self(prompt)

    def forget(self) -> None:
        self._encode.cache_clear()

    @torch.inference_mode()
    def _encode_uncached(self, prompt: str) -> PromptEmbedding:
        states = []
        for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True):
            tokens = tokenizer(
                prompt,
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            # Copies, where it is elsewhere: nothing has to go back.
            own = chain(encoder.named_parameters(), encoder.named_buffers())
            visiting = {name: weight.to(self.device) for name, weight in own}
            ids = tokens.input_ids.to(self.device)
            out = functional_call(encoder, visiting, ids, {"output_hidden_states": self.family.layer is not None})
            states.append(out[0] if self.family.layer is None else out.hidden_states[self.family.layer])
        return PromptEmbedding(torch.cat(states, dim=-1), out.text_embeds if self.family.pooled else None)
