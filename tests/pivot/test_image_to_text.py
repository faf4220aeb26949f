"""A language model that sees: what enters where, what is answered, and folders that hold only what trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cclm.models.processor import CCLMProcessor, ImageSettings
from cclm.pivot.bridges import BridgeSettings
from cclm.pivot.generation import GenerationOptions
from cclm.pivot.image_encoder import ImageEncoderSettings
from cclm.pivot.image_to_text import Built, ImageToText, Prompt
from cclm.pivot.language_model import LanguageModelSettings, LoraSettings
from cclm.pivot.notes import TrainingNotes
from cclm.pivot.presets import CHAT, apply_preset
from cclm.types import VISUAL, ImageInput, PromptInput, StatesInput, VisualPromptBatch
from tests.pivot.conftest import FAMILIES, TEMPLATE, picture

Build = Callable[..., Built]
OPTIONS = GenerationOptions(max_tokens=6)


def images(made: Built, count: int) -> ImageInput:
    return ImageInput(made.processor.images([picture(n) for n in range(count)]))


def asked(made: Built, texts: list[str], left: bool = False) -> PromptInput:
    rows = [made.processor.prompt(TEMPLATE, "de", pictures=1) for _ in texts]
    return made.processor.prompts(rows, made.processor.answers(texts), left)


@pytest.fixture(params=FAMILIES)
def made(request: pytest.FixtureRequest, build: Build) -> Built:
    return build(request.param)


def test_visual_states_stand_at_their_places(made: Built) -> None:
    model, prompts = made.model, asked(made, ["ein hund", "rot"])
    seen, embeds = model.visual(images(made, 2)), model.embeds(images(made, 2), prompts.input_ids)
    places = prompts.input_ids == VISUAL
    assert seen.shape == (2, 4, 32) and torch.equal(embeds[places].unflatten(0, (2, 4)), seen)
    assert torch.equal(embeds[~places], model.language_model.embed(prompts.input_ids)[~places])


def test_the_loss_is_that_of_transformers_on_these_embeddings(made: Built) -> None:
    prompts = asked(made, ["ein hund", "rot"])
    batch = VisualPromptBatch("photos", prompts, ("a", "b"), images(made, 2))
    embeds = made.model.embeds(batch.images, prompts.input_ids)
    mask, whole = prompts.attention_mask.long(), made.model.language_model.model
    right = whole(inputs_embeds=embeds, attention_mask=mask, labels=prompts.labels).loss
    assert torch.allclose(made.model(batch), right, atol=1e-6)


def test_a_picture_matters_to_its_own_prompt_alone(made: Built) -> None:
    prompts = asked(made, ["ein hund", "rot"])
    first, other = images(made, 2), images(made, 3).select(torch.tensor([0, 2]))
    with torch.no_grad():
        before, after = (made.model.log_likelihood(pictures, prompts) for pictures in (first, other))
    assert before[0] == after[0] and before[1] != after[1]


def test_cached_states_are_read_as_the_pictures_are(made: Built) -> None:
    pixels = images(made, 2)
    states = StatesInput(made.model.image_encoder(pixels.pixel_values))
    assert torch.equal(made.model.visual(states), made.model.visual(pixels))


def test_several_pictures_go_into_one_prompt_in_their_order(build: Build) -> None:
    made = build()
    row = made.processor.prompt("{text} <image> und <image> <2{code}>", "de", "sind", pictures=2)
    prompts = made.processor.prompts([row, row], left=True)
    four = images(made, 4)
    embeds = made.model.embeds(four, prompts.input_ids)
    assert torch.equal(embeds[prompts.input_ids == VISUAL].unflatten(0, (4, 4)), made.model.visual(four))
    pair, swapped = (tuple(picture(n) for n in order) for order in ((0, 1), (1, 0)))
    told = [Prompt(pictures, "de", "<image><image><2{code}>") for pictures in (pair, swapped)]
    assert made.model.answer(told, OPTIONS)[0] == made.model.answer(told[:1], OPTIONS)[0]


def test_pictures_that_are_too_many_or_too_few_are_refused(build: Build) -> None:
    made = build()
    prompts = asked(made, ["ein hund", "rot"])
    for count in (1, 3):
        message = rf"^{count} picture\(s\) for prompts with 2 mark\(s\) <image>; give each mark a picture$"
        with pytest.raises(ValueError, match=message):
            made.model.embeds(images(made, count), prompts.input_ids)
    with pytest.raises(ValueError, match=r"1 mark\(s\) <image> for 2 picture\(s\)"):
        made.model.answer([Prompt((picture(0), picture(1)), "de")], OPTIONS)
    with pytest.raises(ValueError, match="language 'xx' is unknown"):
        made.model.answer([Prompt((picture(0),), "xx")], OPTIONS)
    made.processor.template = None
    with pytest.raises(ValueError, match="tells no prompt that it was trained with; give one"):
        made.model.answer([Prompt((picture(0),), "de")], OPTIONS)


@pytest.mark.parametrize("options", [OPTIONS, replace(OPTIONS, beams=3)])
def test_a_batch_is_answered_as_each_prompt_alone(made: Built, options: GenerationOptions) -> None:
    texts = ["", "ein hund", "ein roter hund und noch ein hund"]
    told = [Prompt((picture(n),), "de", "{text}<image><2{code}>", text) for n, text in enumerate(texts)]
    together = made.model.answer(told, options)
    assert together == [made.model.answer([prompt], options)[0] for prompt in told]
    assert options.beams > 1 or len(set(together)) > 1  # or the test says nothing


def test_answers_stream_as_they_are_written(build: Build) -> None:
    from transformers import TextStreamer

    made, heard = build(), []

    class Listener(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            heard.append(text)

    streamer = Listener(made.processor.tokenizer, skip_special_tokens=True)
    (answer,) = made.model.answer([Prompt((picture(0),), "de")], OPTIONS, streamer)
    assert answer and "".join(heard).strip() == answer


def test_sampling_repeats_with_its_seed(build: Build) -> None:
    made = build()
    told = [Prompt((picture(n),), "de") for n in range(3)]
    drawn = [made.model.answer(told, GenerationOptions(8, sample=True, seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_labels_are_as_likely_together_as_each_alone(made: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = ["rot", "ein hund", "ein roter hund und noch ein hund", "r"]
    ids = made.processor.answers(labels)
    rows = [made.processor.prompt("{text}<image><2{code}>", "de", text, 1) for text in ("", "ein roter hund")]
    prompts = made.processor.prompts(rows, left=True)
    both = images(made, 2)
    with torch.no_grad():
        wanted = [
            made.model.log_likelihood(both, made.processor.prompts(rows, [label, label], left=True)) for label in ids
        ]
    found = made.model.label_log_likelihoods(both, prompts, ids)
    assert found.shape == (2, 4) and torch.allclose(found, torch.stack(wanted, dim=1), atol=1e-4)
    monkeypatch.setattr("cclm.pivot.label_likelihood._ROWS", 3)  # one label at a time
    assert torch.allclose(made.model.label_log_likelihoods(both, prompts, ids), found, atol=1e-5)
    with pytest.raises(ValueError, match="no labels, or one without tokens"):
        made.model.label_log_likelihoods(both, prompts, [])


def test_fresh_visual_states_are_as_long_as_words(made: Built) -> None:
    table = made.model.language_model.plain.get_input_embeddings().weight
    usual = table.norm(dim=-1).median()
    assert torch.allclose(made.model.visual(images(made, 2)).norm(dim=-1), usual, rtol=1e-2)


def test_new_parameters_are_those_that_no_file_filled(build: Build, encoder_weights: Path) -> None:
    assert build().new_names == {name for name, _ in build().model.named_parameters() if name.startswith("bridge.")}
    random = ImageEncoderSettings("test_resnet")
    assert any(name.startswith("image_encoder.") for name in build(image_encoder=random).new_names)


# -- folders ---------------------------------------------------------------------------------------------------------


def saved(made: Built, folder: Path, preset: str = "chat_s1") -> Path:
    """As a training leaves it: what the preset trains has moved."""
    names = apply_preset(preset, CHAT, made.model)
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if name in names:
                parameter.add_(0.1 * torch.randn_like(parameter))
    made.model.notes = TrainingNotes((preset,), ("en",))
    folder.mkdir(parents=True)
    made.model.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    return folder


def likelihoods(model: ImageToText) -> torch.Tensor:
    made = Built(model, model.processor, set())
    with torch.no_grad():
        return model.log_likelihood(images(made, 2), asked(made, ["ein hund", "rot"]))


@pytest.mark.parametrize("preset", ["chat_s1", "chat_s1_image_encoder", "chat_s2"])
def test_a_folder_gives_the_model_back_and_holds_only_what_trained(made: Built, tmp_path: Path, preset: str) -> None:
    folder = saved(made, tmp_path / "model", preset)
    again = ImageToText.from_pretrained(folder)
    assert torch.equal(likelihoods(again), likelihoods(made.model.eval())) and again.notes == made.model.notes
    names = apply_preset(preset, CHAT, made.model)
    stored = load_file(folder / "model.safetensors")
    extra = {name for name in stored if name not in names}
    assert set(names) <= set(stored)
    assert all(name.startswith("image_encoder.") and "running" in name or "num_batches" in name for name in extra)
    assert bool(extra) == (preset == "chat_s1_image_encoder")
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "cclm_image_to_text" and config["languages"] == ["en"]


def test_a_folder_with_lora_holds_the_adapters_alone(
    build: Build, tmp_path: Path, language_models: Callable[..., Path]
) -> None:
    lora = LanguageModelSettings(pretrained=str(language_models("qwen3")), lora=LoraSettings(rank=2))
    made = build(language_model=lora)
    assert any("lora_" in name for name in made.new_names)
    folder = saved(made, tmp_path / "model", "chat_s2")
    stored = load_file(folder / "model.safetensors")
    assert all("lora_" in name for name in stored if name.startswith("language_model."))
    assert torch.equal(likelihoods(ImageToText.from_pretrained(folder)), likelihoods(made.model.eval()))


def test_parts_that_lie_nowhere_else_are_in_the_folder(build: Build, tmp_path: Path) -> None:
    new = LanguageModelSettings(config={"model_type": "llama"} | FAMILIES["llama"])
    made = build(language_model=new, image_encoder=ImageEncoderSettings("test_resnet"))
    folder = saved(made, tmp_path / "model")
    assert torch.equal(likelihoods(ImageToText.from_pretrained(folder)), likelihoods(made.model.eval()))


def test_a_later_stage_keeps_what_an_earlier_one_trained(build: Build, tmp_path: Path) -> None:
    first = saved(build(), tmp_path / "first", "chat_s1_image_encoder")
    second = build(pretrained=str(first))
    assert torch.equal(likelihoods(second.model), likelihoods(ImageToText.from_pretrained(first)))
    assert second.model.notes == TrainingNotes(("chat_s1_image_encoder",), ("en",)) and not second.new_names
    apply_preset("chat_s2", CHAT, second.model)
    (tmp_path / "second").mkdir()
    second.model.save_pretrained(tmp_path / "second")
    second.processor.save_pretrained(tmp_path / "second")
    first.rename(tmp_path / "gone")
    assert torch.equal(likelihoods(ImageToText.from_pretrained(tmp_path / "second")), likelihoods(second.model))


def test_a_folder_for_another_language_model_is_refused(
    build: Build, tmp_path: Path, language_models: Callable[..., Path]
) -> None:
    folder, other = saved(build(), tmp_path / "model"), language_models("llama", seed=7)
    with pytest.raises(ValueError, match=r"was trained with another language model than the one that is given; give"):
        ImageToText.from_pretrained(folder, language_model=str(other))
    with pytest.raises(ValueError, match=r"was trained with another language model than"):
        build(language_model=LanguageModelSettings(pretrained=str(other)), pretrained=str(folder))
    with pytest.raises(ValueError, match=r"^no language model at .*elsewhere"):
        ImageToText.from_pretrained(folder, language_model=str(tmp_path / "elsewhere"))
    far = tmp_path / "far" / "model"
    shutil.copytree(folder, far)
    told = f"^{far} needs a part that is not there: no language model at .*; move it along, give --language_model, or"
    with pytest.raises(ValueError, match=told):
        ImageToText.from_pretrained(far)
    with pytest.raises(ValueError, match="no image encoder at .*; move it along, or correct config.json"):
        ImageToText.from_pretrained(far, language_model=str(language_models("llama")))


def test_a_folder_for_another_image_encoder_is_refused(build: Build, tmp_path: Path, encoder_weights: Path) -> None:
    folder = saved(build(), tmp_path / "model")
    other = tmp_path / "other.safetensors"
    save_file({name: value + 1 for name, value in load_file(encoder_weights).items()}, other)
    with pytest.raises(ValueError, match="was trained with another image encoder than"):
        build(image_encoder=ImageEncoderSettings("test_resnet", weights=str(other)), pretrained=str(folder))


def test_a_folder_of_another_bridge_is_refused(build: Build, tmp_path: Path) -> None:
    folder = saved(build(), tmp_path / "model")
    with pytest.raises(ValueError, match=r"^bridge\.\S+ is .* in .* and .* in this model; give the settings it has"):
        build(bridge=BridgeSettings("resampler", states=6, depth=1, heads=2), pretrained=str(folder))
    told = json.loads((folder / "pivot_processor.json").read_text())
    (folder / "pivot_processor.json").write_text(json.dumps(told | {"visual_states": 5}))
    with pytest.raises(ValueError, match="leaves 5 places for a picture, the bridge makes 4 states"):
        ImageToText.from_pretrained(folder)


def test_a_damaged_folder_is_refused(build: Build, tmp_path: Path) -> None:
    folder = saved(build(), tmp_path / "model")
    told = json.loads((folder / "pivot_processor.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    for name in ("bridge", "image_size", "fingerprints"):
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != name}))
        with pytest.raises(ValueError, match=rf"config.json is damaged \('{name}'\); export the model again"):
            ImageToText.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "pivot_processor.json").write_text(json.dumps(told | {"image": told["image"] | {"image_size": 33}}))
    with pytest.raises(ValueError, match="pictures of 33 pixels a side, the model was trained with 32; export the mod"):
        ImageToText.from_pretrained(folder)
    for lost in ("model.safetensors", "tokenizer.json", "pivot_processor.json"):
        other = tmp_path / lost
        shutil.copytree(saved(build(), tmp_path / f"of_{lost}"), other)
        (other / lost).unlink()
        with pytest.raises(ValueError, match=f"^{other} is damaged: .*no .*; export it again$") as error:
            ImageToText.from_pretrained(other)
        assert "cclm" not in str(error.value).replace(str(tmp_path), "")


def test_the_image_encoder_of_a_cross_view_model_serves(build: Build, tmp_path: Path, tokenizer: Path) -> None:
    from cclm.models.model import CCLMConfig, CCLMModel
    from cclm.models.processor import load_tokenizer

    geometry = {"hidden_size": 16, "text_layers": 1, "fusion_layers": 1, "num_heads": 2, "intermediate_size": 16}
    loaded = load_tokenizer(str(tokenizer))
    config = CCLMConfig(vocab_size=len(loaded), image_size=32, backbone="test_resnet", max_positions=40, **geometry)
    folder = tmp_path / "cclm"
    torch.manual_seed(5)
    cclm = CCLMModel(config).eval()
    cclm.save_pretrained(folder)
    CCLMProcessor(loaded, ImageSettings(image_size=32)).save_pretrained(folder)
    made = build(image_encoder=ImageEncoderSettings(pretrained=str(folder)))
    pixels = images(made, 2)
    assert torch.equal(made.model.image_encoder(pixels.pixel_values), cclm.image_encoder(pixels.pixel_values))
    exported = saved(made, tmp_path / "model")
    assert torch.equal(likelihoods(ImageToText.from_pretrained(exported)), likelihoods(made.model.eval()))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "image_encoder: neither of pretrained and backbone given; name a folder or a timm model"),
        ({"backbone": "a", "pretrained": "b"}, "image_encoder: both of pretrained and backbone given"),
        ({"pretrained": "b", "weights": "c"}, "image_encoder.pretrained brings weights and geometry"),
    ],
)
def test_image_encoders_that_are_no_one_thing_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageEncoderSettings(**settings)
