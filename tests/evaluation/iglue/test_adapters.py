"""Models of other makes: what they embed equals what their libraries do, and what is none is refused in one line."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor

from cclm.evaluation import embedder
from cclm.evaluation.adapters.open import ModelOptions, kind_of, open_system
from cclm.evaluation.embedder import System
from cclm.evaluation.items import Caption, Captions
from cclm.evaluation.pictures import open_pictures
from cclm.evaluation.protocol import RetrievalProtocol
from cclm.evaluation.runner import RunOptions, evaluate
from cclm.models.encoding import EncodingOptions
from cclm.models.model import CCLMModel
from cclm.models.processor import CCLMProcessor
from cclm.models.sentence import write_modules
from tests.evaluation.iglue import models

TEXTS = ["a red block", "ein Block", "a very long text about a green block that is tall and wide and green", "", "a"]
IMAGES = [Image.new("RGB", (40, 32), colour) for colour in ((200, 0, 0), (0, 200, 0), (10, 10, 220))]


def opened(name: Path | str, **encoding: object) -> System:
    return open_system(str(name), ModelOptions(torch.device("cpu"), EncodingOptions(text_batch=2, **encoding)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.clip(tmp_path_factory.mktemp("clip"), TEXTS)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.siglip(tmp_path_factory.mktemp("siglip"), TEXTS)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.sentence_encoder(tmp_path_factory.mktemp("sentences"), TEXTS)


def test_clip_embeds_as_transformers_does_one_by_one(clip: Path) -> None:
    system = opened(clip)
    model, processor = AutoModel.from_pretrained(clip).eval(), AutoProcessor.from_pretrained(clip)
    with torch.inference_mode():
        texts = [
            model.get_text_features(**processor(text=text, truncation=True, max_length=24, return_tensors="pt"))
            for text in TEXTS
        ]
        images = [model.get_image_features(**processor(images=image, return_tensors="pt")) for image in IMAGES]
    for found, wanted in ((system.dual.embed_texts(TEXTS, "en"), texts), (system.dual.embed_images(IMAGES), images)):
        wanted = F.normalize(torch.cat([one.pooler_output for one in wanted]), dim=-1)
        assert found.dtype == torch.float32 and torch.allclose(found, wanted, atol=1e-5)
    assert (system.pairs, system.labels) == (None, None)


def test_siglip_reads_lower_case_and_all_of_its_64_positions(siglip: Path) -> None:
    system = opened(siglip)
    found = system.dual.embed_texts(TEXTS, "en")
    assert torch.equal(found, system.dual.embed_texts([text.upper() for text in TEXTS], "en"))
    model, processor = AutoModel.from_pretrained(siglip).eval(), AutoProcessor.from_pretrained(siglip)
    with torch.inference_mode():
        tokens = processor(text=[text.lower() for text in TEXTS], padding="max_length", return_tensors="pt")
        assert tokens["input_ids"].shape == (5, 64)
        wanted = F.normalize(model.get_text_features(tokens["input_ids"]).pooler_output, dim=-1)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert system.dual.embed_images(IMAGES).shape == (3, models.WIDTH)


@pytest.mark.parametrize(
    ("family", "tokens"), [("chinese_clip", 52), ("altclip", 77), ("metaclip_2", 80), ("siglip2", 64)]
)
def test_other_families_embed_alone_as_in_a_batch(family: str, tokens: int, tmp_path: Path) -> None:
    system = opened(models.dual_encoder(family, tmp_path, TEXTS))
    assert system.kind == f"{family} dual encoder" and system.dual.tokens == tokens
    for embed, inputs in (
        (lambda given: system.dual.embed_texts(given, "en"), TEXTS),
        (system.dual.embed_images, IMAGES),
    ):
        found = embed(inputs)
        alone = torch.cat([embed([one]) for one in inputs])
        assert torch.allclose(found, alone, atol=1e-5) and found.std(0).max() > 1e-4
        assert torch.allclose(found.norm(dim=1), torch.ones(len(inputs)))


def test_sentence_transformers_of_texts_alone_embed_texts_alone(sentences: Path) -> None:
    from sentence_transformers import SentenceTransformer

    system = opened(sentences)
    wanted = SentenceTransformer(str(sentences), device="cpu").encode(TEXTS, normalize_embeddings=True)
    assert torch.allclose(system.texts.embed_texts(TEXTS, "de"), torch.from_numpy(wanted), atol=1e-6)
    assert system.dual is None and "texts" in system.kind
    same = torch.isclose(opened(sentences, max_tokens=5).texts.embed_texts(TEXTS, "de"), torch.from_numpy(wanted)).all(
        1
    )
    assert same.tolist() == [True, True, False, True, True]  # the long one is cut


def test_sentence_transformers_that_see_are_dual_encoders(clip: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import CLIPModel

    SentenceTransformer(modules=[CLIPModel(str(clip))]).save(str(tmp_path / "seeing"))
    assert kind_of(str(tmp_path / "seeing")) == "sentence-transformers"
    dual = opened(tmp_path / "seeing").dual
    assert torch.allclose(dual.embed_images(IMAGES), opened(clip).dual.embed_images(IMAGES), atol=1e-5)
    assert torch.allclose(dual.embed_texts(TEXTS[:2], "en"), opened(clip).dual.embed_texts(TEXTS[:2], "en"), atol=1e-5)


def test_our_folders_are_ours_though_sentence_transformers_reads_them_too(
    model: CCLMModel, processor: CCLMProcessor, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    write_modules(tmp_path)
    system = opened(tmp_path)
    assert kind_of(str(tmp_path)) == "cclm" and system.pairs is not None and system.labels is None
    written = ["a red block", "tall and red"]
    assert torch.allclose(
        system.dual.embed_texts(written, "en"), torch.from_numpy(model.embed_texts(written, processor)), atol=1e-6
    )


@pytest.mark.parametrize(
    ("cleaning", "words", "notes"),
    [
        ("none", None, ()),
        ("caption", 80, ("texts cleaned by the model: caption, 80 words",)),
        ("question", None, ("texts cleaned by the model: question",)),
    ],
)
def test_what_our_models_do_to_texts_is_told(
    model: CCLMModel, processor: CCLMProcessor, tmp_path: Path, cleaning: str, words: int | None, notes: tuple[str, ...]
) -> None:
    model.save_pretrained(tmp_path)
    tokens = processor.max_tokens
    CCLMProcessor(processor.tokenizer, processor.settings, tokens, cleaning, words).save_pretrained(tmp_path)
    system = opened(tmp_path)
    assert system.notes == notes
    assert (system.settings["text_cleaning"], system.settings["max_words"]) == (cleaning, words)
    assert system.pair_settings == {"match_score": "log_odds"}
    names = {"red": "a red block", "green": "a green block", "blue": "ein Block"}
    captions = tuple(Caption(name, f"{name}.png", text) for name, text in names.items())
    test = Captions(
        task="t",
        language="en",
        protocol=RetrievalProtocol(name="official", about=""),
        split="test",
        captions=captions,
        gallery=tuple(caption.image for caption in captions),
    )
    with open_pictures(None) as pictures:
        result = evaluate(system, test, pictures, RunOptions()).result
    assert [note for note in result.notes if note.startswith("texts cleaned")] == list(notes)
    assert result.provenance["settings"].items() >= {"text_cleaning": cleaning, "max_words": words}.items()


def test_a_model_of_ones_own_comes_from_a_function_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "class Mine:\n"
        "    name = 'mine'\n"
        "    def embed_texts(self, texts, language):\n"
        "        return torch.eye(len(texts))\n"
        "def make():\n"
        "    return Mine()\n"
        "def wrong():\n"
        "    return 3\n"
    )
    system = opened(f"{file}:make")
    assert system.name == "mine" and system.texts.embed_texts(["a", "b"], "de").shape == (2, 2)
    assert (system.dual, system.pairs, system.labels) == (None, None, None)
    with pytest.raises(ValueError, match="gave a int without embed_texts, score_pairs, label, likeliest or describe"):
        opened(f"{file}:wrong")
    with pytest.raises(ValueError, match="has no function other"):
        opened(f"{file}:other")
    with pytest.raises(ValueError, match="no such file and function"):
        kind_of(str(tmp_path / "absent.py:make"))


def test_files_of_ones_own_have_dataclasses_and_neighbours(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("WIDTH = 3\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "import torch\n"
        "import beside_it\n"
        "@dataclass\n"
        "class Mine:\n"
        "    width: int\n"
        "    def embed_texts(self, texts, language):\n"
        "        return torch.eye(self.width)[[0] * len(texts)]\n"
        "def make():\n"
        "    return Mine(beside_it.WIDTH)\n"
    )
    before = list(sys.path)
    assert opened(f"{file}:make").texts.embed_texts(["a"], "de").shape == (1, 3)
    assert sys.path == before


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 / 0\n", r"does not run \(ZeroDivisionError: division by zero\)"),
        ("def make():\n    raise RuntimeError('no weights')\n", r"does not run \(RuntimeError: no weights\)"),
        ("import absent_one\n", r"does not run \(ModuleNotFoundError: "),
    ],
)
def test_a_file_that_does_not_run_is_told_in_one_line(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=reason):
        opened(f"{tmp_path / 'mine.py'}:make")


def test_the_example_of_the_protocols_is_a_model_in_both_stages(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = embedder.__doc__.partition("Both in one file:\n")[2].partition("Shapes:")[0]
    (tmp_path / "mine.py").write_text(textwrap.dedent(code))
    system = opened(f"{tmp_path / 'mine.py'}:make")
    assert (system.name, system.image_size, system.known, caplog.text) == ("mine", 224, True, "")
    names = {"red": "a red block", "green": "a green block", "blue": "ein Block"}
    captions = tuple(Caption(name, f"{name}.png", text) for name, text in names.items())
    gallery = tuple(caption.image for caption in captions)
    protocol = RetrievalProtocol(name="official", about="")
    test = Captions(task="t", language="en", protocol=protocol, split="test", captions=captions, gallery=gallery)
    with open_pictures(None) as pictures:
        for options in (RunOptions(), RunOptions(rerank=2, rerank_similarity=1.0)):
            assert evaluate(system, test, pictures, options).result.scores["text_to_image"]["R@10"] == 100


def test_without_a_hash_of_its_own_a_model_is_not_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mine.py").write_text(
        "class Mine:\n    def embed_texts(self, texts, language): ...\n"
        "class Told(Mine):\n    def __init__(self, weights): self.sha256 = weights\n"
        "def first(): return Told('1')\ndef second(): return Told('2')\n"
    )
    first, second = (opened(f"{tmp_path / 'mine.py'}:{name}") for name in ("first", "second"))
    assert first.known and first.sha256 != second.sha256 and not caplog.text
    assert not opened(f"{tmp_path / 'mine.py'}:Mine").known
    assert "has no attribute sha256" in caplog.text


def test_what_is_no_such_model_is_refused_before_weights_are_read(sentences: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a model of type bert; give a pretrained folder of cclm, a CLIP"):
        kind_of(str(sentences.parent / "encoder"))
    with pytest.raises(ValueError, match="has no config.json; give"):
        kind_of(str(tmp_path))
    with pytest.raises(ValueError, match="no model at .*absent; give"):
        kind_of(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"no model nobody/nothing, here or on the hub; check the name"):
        kind_of("nobody/nothing")


def test_damaged_weights_are_told_in_one_line(clip: Path, tmp_path: Path) -> None:
    for file in clip.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"\d+ missing tensors, first vision_model.encoder.layers.1.*fetch the model"):
        opened(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be loaded"):
        opened(tmp_path)


def test_other_weights_have_another_hash(clip: Path, siglip: Path) -> None:
    assert opened(clip).sha256 == opened(clip).sha256 != opened(siglip).sha256
