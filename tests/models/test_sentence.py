"""sentence-transformers loads a pretrained folder and gives the vectors that the model gives."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cclm.models.model import CCLMModel
from cclm.models.names import EXPORTED
from cclm.models.sentence import MODULES, CrossViewModule, write_modules
from tests.data.conftest import picture, sentence

TEXTS = [sentence(language, number) for number in (11, 0, 5) for language in ("en", "de", "fr")]


@pytest.fixture
def folder(pretrained: Path, tmp_path: Path) -> Path:
    copied = Path(shutil.copytree(pretrained, tmp_path / "pretrained"))
    write_modules(copied)
    return copied


def test_the_module_gives_the_vectors_of_the_model(folder: Path) -> None:
    (entry,) = json.loads((folder / MODULES).read_text())
    assert entry["type"] == "cclm.models.sentence.CrossViewModule" and MODULES in EXPORTED
    module, model = CrossViewModule.load(str(folder)).eval(), CCLMModel.from_pretrained(folder)
    got = module(module.preprocess(TEXTS))["sentence_embedding"].detach().numpy()
    assert np.allclose(got, model.embed_texts(TEXTS), atol=1e-6) and module.get_embedding_dimension() == got.shape[1]
    module.max_seq_length = 4  # as users of sentence-transformers set it
    assert module.preprocess(TEXTS)["input_ids"].shape[1] == 4


def test_sentence_transformers_loads_it(folder: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers, which cclm does not")
    model, images = CCLMModel.from_pretrained(folder), [Image.open(io.BytesIO(picture(n))) for n in range(3)]
    loaded = library.SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    loaded.save(str(tmp_path / "again"))
    for each in (loaded, library.SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu")):
        assert np.allclose(each.encode(TEXTS, batch_size=4), model.embed_texts(TEXTS), atol=1e-5)
        assert np.allclose(each.encode(images), model.embed_images(images), atol=1e-5)
