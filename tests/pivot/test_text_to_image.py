"""A model that paints: what its noise, guidance, masks and dropped captions do; folders of SD's kind, and its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from cclm.models.processor import ImageSettings
from cclm.pivot.bridges import BridgeSettings
from cclm.pivot.denoisers import DenoiserSettings
from cclm.pivot.noise import NoiseSettings
from cclm.pivot.presets import PAINT, apply_preset
from cclm.pivot.sampling import SamplingOptions
from cclm.pivot.spaces import SpaceSettings
from cclm.pivot.text_encoders import TextEncoderSettings
from cclm.pivot.text_to_image import TextToImage, TextToImageSettings
from cclm.types import ImageInput, PairBatch, TextInput
from tests.pivot.tiny_diffusion import UNET, another_autoencoder, stable_diffusion

TEXTS = ["a red ball and a dog", "un chat", "ball"]
Paint = Callable[..., TextToImage]


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def paint(language_models: Callable[..., Path]) -> Paint:
    """Of pixels and a new U-Net, but for what `changes` say."""

    def made(lm: Path | None = None, **changes: object) -> TextToImage:
        parts: dict[str, object] = {
            "text_encoder": TextEncoderSettings(str(lm or language_models("llama")), layer=1),
            "denoiser": DenoiserSettings(config=UNET),
            "bridge": BridgeSettings("resampler", states=5, depth=1, heads=2),
        }
        if "pretrained" not in str(changes.get("denoiser")):
            parts["space"] = SpaceSettings(patch=2)
        settings = TextToImageSettings(**(parts | changes))
        torch.manual_seed(1)
        image = ImageSettings(16, (0.5,) * 3, (0.5,) * 3)
        return settings.build(settings.text_encoder.processor(image, 24)).model.eval()

    return made


def generated(model: TextToImage, texts: Sequence[str] = TEXTS, seed: int = 0, **options: object) -> np.ndarray:
    chosen = SamplingOptions(**({"steps": 3} | options))
    pictures = model.generate(texts, chosen, torch.Generator().manual_seed(seed))
    assert all(isinstance(each, Image.Image) for each in pictures) and len(pictures) == len(texts)
    return np.stack([np.asarray(picture) for picture in pictures]).astype(int)


def batch(model: TextToImage, texts: Sequence[str], seed: int = 0) -> PairBatch:
    pixels = torch.rand(len(texts), 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return PairBatch("pictures", ImageInput(pixels), model.processor.texts(list(texts)))


def loss(model: TextToImage, texts: Sequence[str], seed: int = 0) -> float:
    return model(batch(model, texts), torch.Generator().manual_seed(seed)).item()


# -- painting --------------------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_noise_whatever_the_text(paint: Paint) -> None:
    model = paint()
    with torch.no_grad():
        model.bridge.output.weight.zero_()  # all texts say the same
    first = generated(model)
    assert np.abs(first - generated(model, ["noir", "chat", "un chat"])).max() <= 1
    assert np.abs(first[:1] - generated(model, ["un chat"])).max() <= 1  # however many follow
    assert np.abs(first - generated(model, batch=2)).max() <= 1
    assert np.abs(first[0] - first[1]).max() > 10 and np.abs(first - generated(model, seed=1)).max() > 10


def test_texts_guidance_and_negative_texts_change_the_picture(paint: Paint) -> None:
    model = paint()
    plain = generated(model, guidance=4.0)
    assert plain.shape == (3, 16, 16, 3)
    assert np.abs(plain - generated(model, TEXTS[::-1], guidance=4.0)).max() > 1
    assert np.abs(plain - generated(model, guidance=1.0)).max() > 1
    assert (generated(paint(guidance=1.0)) == generated(model, guidance=1.0)).all()  # the model's own by default
    assert np.abs(plain - generated(model, guidance=4.0, negative="dog")).max() > 1
    assert np.abs(generated(model, guidance=1.0) - generated(model, guidance=1.0, negative="dog")).max() == 0


@pytest.mark.parametrize("kind", ["linear", "mlp", "resampler"])
def test_what_is_masked_of_a_text_changes_nothing(paint: Paint, kind: str) -> None:
    model = paint(bridge=BridgeSettings(kind, states=5, depth=1, heads=2))
    text = model.processor.texts(TEXTS)
    ids = torch.nn.functional.pad(text.input_ids, (0, 4), value=7)
    ids = ids.masked_fill(~torch.nn.functional.pad(text.attention_mask, (0, 4)), 9)
    longer = TextInput(ids, torch.nn.functional.pad(text.attention_mask, (0, 4)))
    noisy, times = torch.randn(3, 12, 8, 8), torch.tensor([1, 500, 999])
    told = [model.denoiser(noisy, times, *(read.states, read.mask)) for read in map(model.read, (text, longer))]
    torch.testing.assert_close(told[0], told[1], atol=1e-5, rtol=1e-4)
    loose = model.read(longer)
    other = model.denoiser(noisy, times, loose.states, torch.ones_like(loose.mask))
    assert kind == "resampler" or (other - told[1]).abs().max() > 1e-4


def test_prompts_that_cannot_be_read_are_told(paint: Paint) -> None:
    model = paint()
    with pytest.raises(ValueError, match=r"the prompt 'ball ball .* has \d+ tokens, the model reads 24; shorten it"):
        generated(model, ["ball " * 30])
    torch.nn.init.constant_(next(model.bridge.parameters()), torch.nan)
    with pytest.raises(ValueError, match="the bridge gave NaN or infinity: its weights or the text encoder's are"):
        generated(model, ["ball"])


# -- training --------------------------------------------------------------------------------------------------------


def test_captions_are_dropped_for_a_share_of_the_pictures(paint: Paint) -> None:
    all_dropped, none = paint(caption_dropout=0.9999), paint(caption_dropout=0.0)
    none.load_state_dict(all_dropped.state_dict())
    assert loss(all_dropped, TEXTS) == loss(all_dropped, TEXTS[::-1])
    assert loss(none, TEXTS) != loss(none, TEXTS[::-1])
    assert loss(all_dropped, TEXTS) == pytest.approx(loss(none, ["", "", ""]), rel=1e-5)
    half = paint(caption_dropout=0.5)
    text = half.processor.texts(["ball"] * 200)
    seen = half._with_some_hidden(text, torch.Generator().manual_seed(0))
    (empty,) = half.processor.tokens([""])
    hidden = [row[kept].tolist() == empty for row, kept in zip(seen.input_ids, seen.attention_mask, strict=True)]
    kept = [
        row[kept].tolist() == text.input_ids[0].tolist()
        for row, kept in zip(seen.input_ids, seen.attention_mask, strict=True)
    ]
    assert 70 < sum(hidden) < 130 and all(a != b for a, b in zip(hidden, kept, strict=True))


def test_the_loss_is_the_denoisers_error_and_all_chance_the_generators(paint: Paint) -> None:
    model = paint(caption_dropout=0.0)
    given, generator = batch(model, TEXTS), torch.Generator().manual_seed(3)
    clean = model.space.encode(given.context.pixel_values, generator)
    noised, texts = model.noise.draw(clean, generator), model.read(given.target)
    told = model.denoiser(noised.cells, noised.timesteps, texts.states, texts.mask)
    assert loss(model, TEXTS, seed=3) == pytest.approx(torch.nn.functional.mse_loss(told, noised.target).item())
    assert loss(model, TEXTS, seed=3) == loss(model, TEXTS, seed=3) != loss(model, TEXTS, seed=4)


def test_tokenizers_that_put_nothing_around_a_text_leave_one_token_of_the_empty_one(
    paint: Paint, language_models: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "lm"
    shutil.copytree(language_models("qwen3"), folder)
    told = json.loads((folder / "tokenizer.json").read_text())
    told["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(told))
    model = paint(folder, caption_dropout=0.9)
    assert model.processor.tokens([""]) == [[]]
    assert model.states([""]).states.isfinite().all() and np.isfinite(loss(model, ["", "ball"]))
    assert generated(model, ["", "ball"]).shape == (2, 16, 16, 3)


# -- folders ---------------------------------------------------------------------------------------------------------


def saved(model: TextToImage, folder: Path) -> Path:
    folder.mkdir()
    model.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    return folder


def weights(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as stored:
        return set(stored.keys())


def test_a_folder_holds_what_trained_and_paints_the_same(paint: Paint, tmp_path: Path) -> None:
    model = paint()
    apply_preset("paint_full", PAINT, model)
    folder = saved(model, tmp_path / "model")
    assert {name.split(".")[0] for name in weights(folder)} == {"bridge", "denoiser"}
    told = json.loads((folder / "config.json").read_text())
    assert told["model_type"] == "cclm_text_to_image" and told["text_encoder"]["pretrained"].startswith("..")
    again = TextToImage.from_pretrained(folder)
    assert (generated(again) == generated(model)).all()
    assert not again.training and again.processor.image_size == 16


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("model.safetensors", "no weight file at .*"),
        ("processor_config.json", "no processor_config.json in .*"),
        ("tokenizer.json", "no tokenizer .*"),
    ],
)
def test_a_folder_that_lacks_a_file_is_damaged(paint: Paint, tmp_path: Path, file: str, told: str) -> None:
    folder = saved(paint(), tmp_path / "model")
    (folder / file).unlink()
    with pytest.raises(ValueError, match=f"^{folder} is damaged: {told}; export it again$") as error:
        TextToImage.from_pretrained(folder)
    assert "cclm" not in str(error.value).replace(str(tmp_path), "")


def test_stable_diffusions_folder_is_where_training_starts(paint: Paint, sd: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    model = paint(denoiser=DenoiserSettings(str(sd)))
    unet = UNet2DConditionModel.from_pretrained(sd / "unet").state_dict()
    vae = AutoencoderKL.from_pretrained(sd / "vae").state_dict()
    assert all(torch.equal(value, unet[name]) for name, value in model.denoiser.model.state_dict().items())
    assert all(torch.equal(value, vae[name]) for name, value in model.space.vae.state_dict().items())
    assert model.noise.scheduler.config.beta_end == 0.012 and model.noise.prediction == "epsilon"
    kept = {}
    for preset in ("paint_bridge", "paint_cross_attention", "paint_full"):
        apply_preset(preset, PAINT, model)
        folder = saved(model, tmp_path / preset)
        kept[preset] = weights(folder)
        assert (generated(TextToImage.from_pretrained(folder)) == generated(model)).all()
    assert {name.split(".")[0] for name in kept["paint_bridge"]} == {"bridge"}
    cross = {name for name in kept["paint_cross_attention"] if not name.startswith("bridge")}
    assert cross == {f"denoiser.model.{name}" for name in unet if ".attn2." in name}
    assert kept["paint_full"] == kept["paint_bridge"] | {f"denoiser.model.{name}" for name in unet}


@pytest.mark.parametrize("kind", ["mean", "mlp", "resampler"])
def test_unsteadiness_is_how_far_a_moved_text_is_taken_for_another(paint: Paint, kind: str) -> None:
    model = paint(bridge=BridgeSettings(kind, states=2, depth=2, heads=2))
    text, draw = batch(model, TEXTS).target, torch.Generator().manual_seed(0)
    near, half, far = (model.unsteadiness(text, model.bridge, noise, 64, draw).item() for noise in (1e-3, 0.5, 1.0))
    assert near < 1e-3 < half < far
    other = paint(bridge=BridgeSettings(kind, states=2, depth=2, heads=2)).bridge
    torch.nn.init.normal_(other.output_norm.bias, std=100.0)
    against = model.unsteadiness(text, other, 1e-3, 1, draw)  # next to it, what this one says is nothing
    assert against.item() == pytest.approx(1.0, abs=0.1)
    against.backward()
    assert all(parameter.grad is None for parameter in other.parameters())
    assert any(parameter.grad is not None for parameter in model.bridge.parameters())


def test_noise_that_nobody_tells_is_not_guessed(paint: Paint, sd: Path, tmp_path: Path) -> None:
    shutil.copytree(sd, tmp_path / "sd")
    shutil.rmtree(tmp_path / "sd" / "scheduler")
    cure = "add the pipeline's folder `scheduler`, or give noise.scheduler with prediction_type and beta_schedule"
    for place in (tmp_path / "sd", tmp_path / "sd" / "unet"):
        with pytest.raises(ValueError, match=f"^no scheduler in {place}, which tells the noise .*; {cure}$"):
            paint(denoiser=DenoiserSettings(str(place)), space=SpaceSettings(vae=str(sd)))
    told = {"prediction_type": "epsilon", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    model = paint(
        denoiser=DenoiserSettings(str(tmp_path / "sd" / "unet")),
        space=SpaceSettings(vae=str(sd)),
        noise=NoiseSettings(told),
    )
    assert model.noise.scheduler.config.beta_end == 0.012


def test_stable_diffusion_2_predicts_a_velocity(paint: Paint, tmp_path: Path) -> None:
    model = paint(denoiser=DenoiserSettings(str(stable_diffusion(tmp_path, second=True))), caption_dropout=0.0)
    assert model.noise.prediction == "v_prediction"
    given, generator = batch(model, TEXTS), torch.Generator().manual_seed(3)
    clean = model.space.encode(given.context.pixel_values, generator)
    noised, texts = model.noise.draw(clean, generator), model.read(given.target)
    share = model.noise.scheduler.alphas_cumprod[noised.timesteps].view(-1, 1, 1, 1)
    noise = (noised.cells - share.sqrt() * clean) / (1 - share).sqrt()
    velocity = share.sqrt() * noise - (1 - share).sqrt() * clean
    told = model.denoiser(noised.cells, noised.timesteps, texts.states, texts.mask)
    assert loss(model, TEXTS, seed=3) == pytest.approx(torch.nn.functional.mse_loss(told, velocity).item(), rel=1e-4)
    assert generated(model).shape == (3, 16, 16, 3)


def test_a_large_bridge_is_refused_by_the_small_preset(paint: Paint) -> None:
    model = paint(bridge=BridgeSettings("resampler", states=4, depth=2, heads=8, width=1024))
    with pytest.raises(ValueError, match=r"paint_bridge is for at most 20 million parameters and here \d+\.\d would"):
        apply_preset("paint_bridge", PAINT, model)


def test_a_folder_made_for_other_parts_is_refused(
    paint: Paint, sd: Path, language_models: Callable[..., Path], tmp_path: Path
) -> None:
    model = paint(denoiser=DenoiserSettings(str(sd)))
    apply_preset("paint_bridge", PAINT, model)
    folder = saved(model, tmp_path / "model")
    other = language_models("llama", 1)
    moved = shutil.copytree(language_models("llama"), tmp_path / "moved")
    assert (generated(TextToImage.from_pretrained(folder, text_encoder=str(moved))) == generated(model)).all()
    with pytest.raises(ValueError, match="was trained with another text encoder, or another layer of it, than the one"):
        TextToImage.from_pretrained(folder, text_encoder=str(other))
    with pytest.raises(ValueError, match="another text encoder"):
        paint(
            text_encoder=TextEncoderSettings(str(language_models("llama")), layer=0),
            denoiser=DenoiserSettings(str(sd)),
            pretrained=str(folder),
        )
    elsewhere = stable_diffusion(tmp_path / "sd")
    from diffusers import UNet2DConditionModel

    torch.manual_seed(5)
    UNet2DConditionModel(sample_size=8, **UNET).save_pretrained(elsewhere / "unet")
    with pytest.raises(ValueError, match="was trained with another denoiser"):
        paint(denoiser=DenoiserSettings(str(elsewhere)), pretrained=str(folder))
    coded = another_autoencoder(stable_diffusion(tmp_path / "coded"))
    with pytest.raises(ValueError, match="was trained with another autoencoder than the one that is given; give that"):
        paint(denoiser=DenoiserSettings(str(sd)), space=SpaceSettings(str(coded)), pretrained=str(folder))
    told = json.loads((folder / "config.json").read_text())
    told["text_encoder"]["pretrained"] = "../gone"
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"model needs a part that is not there: no text encoder at .*gone; move it"):
        TextToImage.from_pretrained(folder)
    told["denoiser"]["pretrained"] = "../gone"
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"no denoiser at .*gone; move it along, or correct config.json"):
        TextToImage.from_pretrained(folder, text_encoder=str(moved))
    (folder / "config.json").write_text('{"model_type": "cclm"}')
    with pytest.raises(ValueError, match="holds a model of type cclm, not cclm_text_to_image"):
        TextToImage.from_pretrained(folder)
