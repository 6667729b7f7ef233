"""A LoRA in training: two adapters in one UNet, the trained one and its slow average, and the UNet without either."""

import warnings
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

# The layers of LCM-LoRA (arXiv 2311.05556): attention, feed-forward, convolutions, time embeddings of the blocks.
LAYERS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "time_emb_proj"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
)


class TwinLora:
    """`online` is trained, `target` follows it as an exponential average and is what is saved.

    alpha equals the rank, so the file needs no alpha. Added through `unet.add_adapter` and saved as the raw peft dict:
    diffusers drops part of a dict in mixed key styles.
    """

    def __init__(self, unet: UNet2DConditionModel, rank: int, decay: float):
        self.unet, self.decay = unet, decay
        unet.requires_grad_(False)
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two adapters are meant
        for name in ("online", "target"):
            unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LAYERS)), adapter_name=name)
        self.online, self.target = (self._tensors(name) for name in ("online", "target"))
        for name, tensor in self.target.items():
            tensor.data.copy_(self.online[name].data)
        self.use("online")

    def _tensors(self, adapter: str) -> dict[str, torch.nn.Parameter]:
        mark = f".{adapter}."
        return {name.replace(mark, "."): p for name, p in self.unet.named_parameters() if mark in name}

    def use(self, which: str | None) -> None:
        """`online`, `target`, or None for the plain UNet: the teacher."""
        if which is None:
            self.unet.disable_adapters()
            return
        self.unet.enable_adapters()
        self.unet.set_adapter(which)

    @torch.no_grad()
    def follow(self) -> None:
        """One step of the average."""
        for name, tensor in self.target.items():
            tensor.lerp_(self.online[name], 1 - self.decay)

    def state_dict(self) -> dict:
        return {"online": dict(self.online), "target": dict(self.target)}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        for mine, theirs in ((self.online, state["online"]), (self.target, state["target"])):
            for name, tensor in mine.items():
                tensor.copy_(theirs[name])

    def save(self, folder: Path) -> int:
        """Writes pytorch_lora_weights.safetensors in float16; returns its bytes."""
        layers = get_peft_model_state_dict(self.unet, adapter_name="target")
        layers = {name: tensor.half().contiguous().cpu() for name, tensor in layers.items()}
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
        return (folder / "pytorch_lora_weights.safetensors").stat().st_size
