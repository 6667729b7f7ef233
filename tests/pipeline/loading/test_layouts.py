"""Models as they lie on disk: every layout gives the picture of the plain diffusers folder with the same weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from pipeline import Controls, LoadError, Lora, ModelSpec, load
from pipeline.loading.hub import on_disk
from tests import lora_files, single_file, tiny

SIZE = {"width": 64, "height": 64, "dtype": "float32"}
FRAME = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
CONTROLS = Controls(prompt="a cat", guidance=1.5)
FAMILIES = {"sd": tiny.UNET, "xl": tiny.XL}


def painted(base: Path | str, **parts) -> np.ndarray:
    return load(ModelSpec(str(base), **SIZE, **parts), "cpu", compile=False)(FRAME, CONTROLS).astype(int)


def assert_equal(ours: np.ndarray, theirs: np.ndarray) -> None:
    """But for the last bit, which depends on where in memory weights lie."""
    assert np.abs(ours - theirs).max() <= 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Callable[[str], Path]:
    """family -> a plain folder with an AutoencoderKL and weights that float16 holds."""
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = tiny.checkpoint(tmp_path_factory.mktemp(family) / family, kl=True, unet=FAMILIES[family])
            for file in made[family].glob("*/*.safetensors"):
                rounded = {name: tensor.half().float() for name, tensor in load_file(file).items()}
                save_file(rounded, file, metadata={"format": "pt"})
        return made[family]

    return of


@pytest.fixture(scope="module")
def picture(folder) -> Callable[[str], np.ndarray]:
    """family -> the plain folder's picture."""
    made: dict[str, np.ndarray] = {}

    def of(family: str) -> np.ndarray:
        if family not in made:
            made[family] = painted(folder(family))
            assert made[family].std() > 5
        return made[family]

    return of


@pytest.mark.parametrize(("family", "shards"), [("sd", False), ("xl", False), ("xl", True)])
def test_fp16_variants(folder, picture, family, shards, tmp_path):
    """As diffusers' own saver writes them, in one file each or in several with an index."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder(family)).to(dtype=diffusers.utils.torch_utils.torch.half)
    pipe.save_pretrained(tmp_path, variant="fp16", max_shard_size="40KB" if shards else "10GB")
    names = {file.name for file in tmp_path.glob("*/*.safetensors*")}
    assert ("diffusion_pytorch_model.safetensors.index.fp16.json" in names) == shards
    assert all(".fp16" in name for name in names)
    assert_equal(painted(tmp_path), picture(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_file(folder, picture, family, tmp_path):
    """The layout of A1111 and Civitai, its configs in a folder of the same name beside it."""
    single_file.write(folder(family), tmp_path / "single.safetensors")
    configs_of(folder(family), tmp_path / "single")
    assert_equal(painted(tmp_path / "single.safetensors"), picture(family))


def configs_of(folder: Path, target: Path) -> None:
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))


@pytest.mark.parametrize("layout", ["folder", "one file"])
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_from_elsewhere(folder, picture, family, layout, tmp_path):
    """unet= and vae= as folders and as files, for a base of either layout: the picture of the model they come from."""
    other = tiny.checkpoint(tmp_path / "other", kl=True, unet=FAMILIES[family], seed=5)
    for name in ("text_encoder", "text_encoder_2"):
        if (other / name).is_dir():
            shutil.copytree(folder(family) / name, other / name, dirs_exist_ok=True)
    if layout == "one file":
        single_file.write(other, tmp_path / "single.safetensors")
        configs_of(other, tmp_path / "single")
        other = tmp_path / "single.safetensors"
    assert np.abs(painted(other) - picture(family)).max() > 20
    shutil.copytree(folder(family) / "unet", tmp_path / "lcm" / "unet")
    own = {"unet": folder(family) / "unet", "vae": folder(family) / "vae"}
    in_files = {"unet": tmp_path / "u.safetensors", "vae": tmp_path / "v.safetensors"}
    single_file.write_unet(own["unet"], in_files["unet"])
    single_file.write_vae(own["vae"], in_files["vae"])
    diffusers_keys = own["vae"] / "diffusion_pytorch_model.safetensors"
    in_folders = (tmp_path / "lcm", own["vae"] if layout == "folder" else diffusers_keys)
    for unet, vae in (in_folders, in_files.values()):
        assert_equal(painted(other, unet=str(unet), vae=str(vae)), picture(family))


@pytest.mark.parametrize("layout", ["folder", "one file"])
def test_a_tiny_autoencoder_in_one_file(folder, layout, tmp_path):
    """An AutoencoderTiny beside a base whose own is an AutoencoderKL: its config lies beside it, or is TAESD's."""
    tiny_vae = tiny.checkpoint(tmp_path / "with-tiny") / "vae"
    expected = painted(folder("sd"), vae=str(tiny_vae))
    base = folder("sd")
    if layout == "one file":
        base = tmp_path / "single.safetensors"
        single_file.write(folder("sd"), base)
        configs_of(folder("sd"), tmp_path / "single")
    file = tmp_path / "taesd.safetensors"
    shutil.copy(tiny_vae / "diffusion_pytorch_model.safetensors", file)
    with pytest.raises(LoadError, match=r"The VAE .*taesd\.safetensors has other tensors than a usual one asks for"):
        painted(base, vae=str(file))
    configs_of(tiny_vae, tmp_path / "taesd")
    assert_equal(painted(base, vae=str(file)), expected)
    true_size = tmp_path / "true.safetensors"
    save_file(diffusers.AutoencoderTiny().state_dict(), true_size)
    load(ModelSpec(str(base), vae=str(true_size), **SIZE), "cpu", compile=False)


def test_a_file_whose_config_is_nowhere(folder, tmp_path):
    """It would be that of the published model, which the switched-off network keeps away."""
    with_tiny = tiny.checkpoint(tmp_path / "with-tiny")
    single_file.write_vae(folder("sd") / "vae", tmp_path / "fine.safetensors")
    with pytest.raises(
        LoadError, match=r"The VAE .*fine\.safetensors is one file without configs: put them into .*fine/"
    ):
        painted(with_tiny, vae=str(tmp_path / "fine.safetensors"))
    single_file.write(folder("sd"), tmp_path / "single.safetensors")
    with pytest.raises(LoadError, match=r"The model .*single\.safetensors is one file without configs"):
        painted(tmp_path / "single.safetensors")


def test_a_full_lcm_unet_in_one_file(folder, tmp_path):
    """diffusers' own names, and no config: the base's is right but for the guidance, which is told by the file."""
    full = tiny.checkpoint(tmp_path / "full", guidance_embedding=True, seed=8)
    file = tmp_path / "lcm.safetensors"
    shutil.copy(full / "unet" / "diffusion_pytorch_model.safetensors", file)
    assert_equal(painted(folder("sd"), unet=str(file)), painted(folder("sd"), unet=str(full)))


def test_a_file_that_lacks_weights(folder, tmp_path):
    file = tmp_path / "single.safetensors"
    single_file.write(folder("xl"), file)
    configs_of(folder("xl"), tmp_path / "single")
    tensors = load_file(file)
    for lost in ("model.diffusion_model.out.2.weight", "conditioner.embedders.1.model.text_projection"):
        save_file({name: tensor for name, tensor in tensors.items() if name != lost}, file)
        with pytest.raises(LoadError, match=r"The model .*single\.safetensors lacks weights that its config asks for"):
            painted(file)


@pytest.fixture(scope="module")
def merged(folder, tmp_path_factory) -> Callable[[str, str], np.ndarray]:
    """(family, pattern of module names) -> the picture of the folder with the LoRA of these modules in its weights."""
    made: dict[tuple[str, str], np.ndarray] = {}

    def of(family: str, pattern: str) -> np.ndarray:
        if (family, pattern) not in made:
            target = tmp_path_factory.mktemp("merged") / family
            shutil.copytree(folder(family), target)
            lora_files.merge(target, lora_files.factors(target, pattern=pattern))
            made[family, pattern] = painted(target)
        return made[family, pattern]

    return of


@pytest.mark.parametrize(
    ("family", "style"),
    [(family, style) for family in FAMILIES for style in lora_files.STYLES if (family, style[-5:]) != ("sd", "names")],
)
def test_key_styles_of_loras(folder, picture, merged, family, style, tmp_path):
    """Of the UNet and all text encoders at once."""
    pattern = r"unet.*attn" if style == "processors" else ""
    lora = lora_files.factors(folder(family), pattern=pattern)
    file = lora_files.write(tmp_path / "style.safetensors", lora, style)
    assert np.abs(merged(family, pattern) - picture(family)).max() > 20
    assert_equal(painted(folder(family), loras=(Lora(str(file)),)), merged(family, pattern))


@pytest.fixture
def cached(tmp_path, monkeypatch) -> Callable[[str], Path]:
    """repo id -> its folder in a local cache as the hub's client lays it out."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def folder(repo: str) -> Path:
        made = tmp_path / "cache" / f"models--{repo.replace('/', '--')}"
        (made / "refs").mkdir(parents=True)
        (made / "refs" / "main").write_text("abc")
        return made / "snapshots" / "abc"

    return folder


def test_a_hub_id_comes_from_the_local_cache(folder, picture, cached):
    repo = cached("someone/something")
    shutil.copytree(folder("sd"), repo)
    assert on_disk(ModelSpec("someone/something"))
    assert_equal(painted("someone/something"), picture("sd"))
    assert not on_disk(ModelSpec("someone/else"))
    with pytest.raises(LoadError, match=r"The model someone/else is not on disk"):
        load(ModelSpec("someone/else"), "cpu", download=False)
    with pytest.raises(LoadError, match="someone/else is not on disk and HF_HUB_OFFLINE keeps the network off"):
        load(ModelSpec("someone/else"), "cpu")
    with pytest.raises(LoadError, match=r"The ControlNet someone/net is not on disk"):
        load(ModelSpec("someone/something", controlnet="someone/net"), "cpu", download=False)
    (repo / "vae" / "diffusion_pytorch_model.safetensors").unlink()  # as another program may leave it
    assert not on_disk(ModelSpec("someone/something"))


def test_parts_in_subfolders(folder, picture, cached, tmp_path):
    """Of a folder and of a hub's repository: what its path names, and with several the choice is left to the user."""
    repo = cached("someone/parts")
    made = {
        "controlnet": tiny.controlnet(repo / "nets" / "canny"),
        "adapter": tiny.adapter(repo / "t2i" / "canny"),
        "motion": tiny.motion(repo / "motion" / "v1"),
    }
    tiny.controlnet(repo / "soft", seed=9)
    for part in ("controlnet", "adapter"):
        in_folder = painted(folder("sd"), **{part: str(made[part])})
        assert np.abs(in_folder - picture("sd")).max() > 20
        named = "someone/parts/" + made[part].relative_to(repo).as_posix()
        assert_equal(painted(folder("sd"), **{part: named}), in_folder)
    clips = [
        load(ModelSpec(str(folder("sd")), motion=motion, **SIZE), "cpu", compile=False).animate(CONTROLS, count=2)
        for motion in (str(made["motion"]), "someone/parts/motion/v1")
    ]
    assert np.array_equal(*clips)
    with pytest.raises(LoadError, match=r"The ControlNet .* lacks config\.json \(name one part, as .*/soft; there are"):
        painted(folder("sd"), controlnet=str(repo))
