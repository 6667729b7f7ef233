"""What all stages promise: refusals of one sentence, checkpoints that resume, measures that mean what they say."""

import json
import random
from collections import namedtuple

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file

from pipeline import Controls, ModelSpec, load
from tests import paths


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("autoencoder", "photos.npy"),
        ("unet", "autoencoder.pt"),
        ("export", "autoencoder.pt"),
        ("distill", "photos.npy"),
    ],
)
def test_a_stage_without_data_names_the_command_that_makes_it(refusal, tmp_path, base, name, missing):
    options = ["--base", base] if name == "distill" else []
    said = refusal(name, "--data", tmp_path, *options)
    assert missing in said
    assert "run `python training/" in said


def test_too_little_disk_is_said_before_anything_is_fetched(refusal, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 9, 40_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    said = refusal("data", "fetch", "--data", tmp_path)
    assert "40 MB free" in said
    assert not list(tmp_path.iterdir())


def test_unfinished_paintings_are_not_trained_on(refusal, tmp_path):
    np.save(tmp_path / "photos.npy", np.zeros((2, 8, 8, 3), np.uint8))
    np.save(tmp_path / "paintings.npy", np.zeros((2, 2, 8, 8, 3), np.uint8))
    np.save(tmp_path / "styles.npy", np.array([[0, 1], [2, -1]], np.int8))
    assert "not complete" in refusal("autoencoder", "--data", tmp_path)


def test_a_run_resumes_at_its_last_save(tmp_path):
    from common.runs import Average, Run

    def begin():
        torch.manual_seed(0)
        layer = torch.nn.Linear(2, 2)
        parts = {"layer": layer, "average": Average(layer)}
        return layer, parts["average"], Run(tmp_path / "run.pt", 10, parts)

    layer, average, run = begin()
    run.SAVE_EVERY_S = 0
    for _ in range(3):
        layer.weight.data += 1
        average.update(layer)
        run.tick()
    again, resumed_average, resumed = begin()
    assert resumed.step == 3
    assert torch.equal(again.weight, layer.weight)
    assert torch.equal(resumed_average.weights["weight"], average.weights["weight"])


def test_the_bundled_model_unpacks_into_checkpoints_that_export_as_it_is(stage, tmp_path):
    mini = paths.MINI
    stage("unpack", "--model", mini, "--data", tmp_path)
    (tmp_path / "start.pt").rename(tmp_path / "unet.pt")
    stage("export", "--data", tmp_path, "--out", tmp_path / "again")
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (mini / part).glob("*.safetensors")
        first, second = load_file(file), load_file(tmp_path / "again" / part / file.name)
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    configs = [json.loads((folder / "vae/config.json").read_text()) for folder in (mini, tmp_path / "again")]
    assert configs[0]["scaling_factor"] == pytest.approx(configs[1]["scaling_factor"])


def test_a_new_controlnet_changes_nothing_and_a_trained_one_loads_here(base, tmp_path):
    from controlnet import make_controlnet

    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    net = make_controlnet(unet)
    x, t, states = torch.randn(1, 4, 8, 8), torch.tensor([499]), torch.randn(1, 77, 16)
    down, mid = net(x, t, states, controlnet_cond=torch.rand(1, 3, 64, 64), return_dict=False)
    joined = unet(x, t, states, down_block_additional_residuals=down, mid_block_additional_residual=mid)
    assert torch.equal(joined.sample, unet(x, t, states).sample)

    for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(block.weight)
    net.save_pretrained(tmp_path / "net")
    ControlNetModel.from_pretrained(tmp_path / "net")
    spec = ModelSpec(str(base), controlnet=str(tmp_path / "net"), width=64, height=64)
    engine = load(spec, device="cpu", compile=False)
    frames = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)
    held, free = (engine(frames, Controls(prompt="ink", control_scale=scale)) for scale in (1.0, 0.0))
    assert not np.array_equal(held, free)


def test_the_measures_know_their_ends():
    from common.measures import change, chroma_correlation, contour_correlation, mixture, psnr
    from common.perceptual import gram_error

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 255, (2, 1, 32, 32, 3), dtype=np.uint8)
    assert psnr(a, a) > 100
    assert psnr(np.zeros_like(a), np.full_like(a, 255)) == pytest.approx(0)
    assert chroma_correlation(a, a) == pytest.approx({"cb": 1, "cr": 1})
    assert contour_correlation(a, a, (slice(None), slice(None))) == pytest.approx(1)
    assert mixture(a, b, a) == pytest.approx(0)
    assert mixture(a, b, b) == pytest.approx(1)
    assert change(np.concatenate([a, a])) == 0
    features = torch.rand(2, 3, 8, 8)
    assert gram_error(features, features).max() < 0.01
    assert gram_error(torch.zeros_like(features), features) == pytest.approx(torch.ones(2), abs=1e-3)


def test_a_prompt_of_two_styles_is_trained_on_the_mean_of_both_paintings(tmp_path):
    from common.pairs import Pairs, encode_all

    class Halves:
        """An encoder that takes the mean of 8x8 pixels."""

        class config:
            scaling_factor = 2.0

        encoder = torch.nn.Conv2d(3, 3, 8, 8, groups=3, bias=False)

    torch.nn.init.constant_(Halves.encoder.weight, 1 / 64)
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
    paintings = rng.integers(0, 255, (3, 2, 64, 64, 3), dtype=np.uint8)
    for name, array in (("photos", photos), ("paintings", paintings), ("styles", np.array([[0, 1]] * 3, np.int8))):
        np.save(tmp_path / f"{name}.npy", array)
    device = torch.device("cpu")
    pairs = Pairs(tmp_path, Halves(), device, seed=0)
    pairs.CHANCES = (0, 0, 1)
    batch = pairs.draw(4, side=4)
    assert batch.photo.shape == (4, 3, 4, 4)
    assert batch.painting_picture.shape == (4, 3, 32, 32)
    pooled = torch.nn.functional.avg_pool2d(batch.painting_picture, 8) * 2
    torch.testing.assert_close(batch.painting, pooled, atol=0.02, rtol=0.02)
    Halves.config.scaling_factor = 4.0  # another encoder: the kept latents are not its own
    again = encode_all(Halves(), photos, tmp_path / "photos.pt", device)
    assert float(again[0].abs().mean()) > 1.5 * float(pairs.photo_latents[0].abs().mean())


def test_every_painting_grows_out_of_its_photo():
    from common.styles import STYLES, grey, paint

    ramp = np.tile(np.linspace(0, 255, 256).astype(np.uint8)[None, :, None], (256, 1, 3))
    light = ramp[..., 0].ravel()
    for name, style in STYLES.items():
        if style.teacher is None:
            painted = grey(paint(None, ramp, name).astype(np.float32))
            # On the way to a negative of the photo lies nothing but grey.
            assert np.corrcoef(painted.ravel(), light)[0, 1] > 0.5, name


def test_twins_are_one_scene_a_moment_apart_and_what_flickers_is_seen():
    from common.pairs import PairBatch
    from unet import TWINS, Twins

    class InLittle:
        """Latents are the means of 8x8 pixels."""

        class config:
            scaling_factor = 2.0

        encoder = torch.nn.AvgPool2d(8)
        decoder = torch.nn.Upsample(scale_factor=8)

    torch.manual_seed(0)
    picture = torch.rand(4, 3, 128, 128)
    photo = torch.nn.functional.avg_pool2d(picture, 8) * 2
    batch = PairBatch(photo, torch.rand(4, 3, 16, 16), list("abcd"), picture, picture.clone())
    twins = Twins(batch, InLittle(), random.Random(0))
    assert batch.prompts == ["a", "b", "a", "b"]
    assert torch.equal(batch.painting[-TWINS:], batch.painting[:TWINS])
    apart = (batch.photo[-TWINS:] - batch.photo[:TWINS]).abs().amax((0, 1)) > 1e-5
    assert 0 < apart.sum() <= Twins.SIDE**2
    seen = float(twins.unrest(batch.photo))
    assert 0 < seen < 1, "means change less than pixels"
    assert float(twins.unrest(3 * batch.photo)) == pytest.approx(3 * seen, rel=1e-4)
    assert float(twins.unrest(torch.ones_like(photo))) == 0


def test_a_checkpoint_of_other_options_is_refused(tmp_path, capsys):
    from common.runs import Run

    run = Run(tmp_path / "run.pt", 10, {"layer": torch.nn.Linear(2, 2)})
    run.save()
    with pytest.raises(SystemExit):
        Run(tmp_path / "run.pt", 10, {"layer": torch.nn.Linear(3, 3)})
    assert "other options" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "says"), [(KeyboardInterrupt(), 130, "goes on"), (OSError(28, ""), 2, "full")]
)
def test_interruptions_and_full_disks_end_with_a_sentence(capsys, error, code, says):
    from common.runs import command

    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        command(main)
    assert ended.value.code == code
    assert says in capsys.readouterr().err


def test_peers_meet_in_the_middle(tmp_path):
    from common.runs import Peers

    layers = [torch.nn.Linear(2, 2) for _ in range(2)]
    middle = (layers[0].weight.detach() + layers[1].weight.detach()) / 2
    peers = [Peers(tmp_path, me, layer) for me, layer in enumerate(layers)]
    for peer in peers:
        peer.EVERY = 1
        peer.meet()  # the first finds nobody yet, the second finds the first
    assert torch.equal(layers[1].weight, middle)


def test_the_report_is_markdown_tables():
    from report import markdown, rounded

    figures = {
        "weights_mb": 24.01234,
        "flicker": {"mean": 1.5},
        "gram_error": {"base, 1 step": {"mean": 0.5, "ink": 0.25}},
    }
    text = markdown(rounded(figures))
    assert "| weights mb | 24.012 |" in text
    assert "| base, 1 step | 0.5 | 0.25 |" in text
