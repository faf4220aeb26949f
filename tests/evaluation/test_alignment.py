"""The probe finds the layer in which translations meet, in any text model of ours or of transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from cclm.cli import main
from cclm.data.shards import write_shards
from cclm.data.tokenizer import train_tokenizer
from cclm.evaluation.alignment import Alignment, AlignmentOptions, PairAlignment, measure_alignment
from cclm.evaluation.report import Provenance
from cclm.models.model import CCLMModel
from cclm.models.processor import CCLMProcessor
from cclm.pivot.language_model import LanguageModelSettings
from cclm.types import Record
from tests.data.conftest import WORDS, sentence

UNTOLD = Provenance("", "", "", "", "")


class Numbers:
    """Reads sentences such as "de 7 x". Layer 0 knows the language alone, layer 1 the number too, layer 2 only it."""

    def layer_states(self, texts: Sequence[str]) -> tuple[Sequence[Tensor], Tensor]:
        length = max(map(len, texts))
        mask = torch.tensor([[place < len(text) for place in range(length)] for text in texts])
        language = torch.tensor([float(sum(map(ord, text[:2]))) for text in texts])
        number = torch.tensor([float(text.split()[1]) for text in texts])
        one, angle = torch.ones(len(texts)), number / 3
        points = [
            (language, one, one),
            (language % 7 - 3, angle.sin(), angle.cos()),
            (0 * one, angle.sin(), angle.cos()),
        ]
        padded = [torch.stack(point, -1)[:, None].repeat(1, length, 1) for point in points]
        return [states.masked_fill(~mask.unsqueeze(-1), 1e6) for states in padded], mask


def records(count: int) -> list[Record]:
    """Every third lacks French; sentences are of different lengths."""
    return [
        Record(
            str(n),
            parallel={code: f"{code} {n} {'x' * (n % 5)}" for code in ("de", "en", "fr") if code != "fr" or n % 3},
        )
        for n in range(count)
    ]


def test_the_layer_is_found_where_translations_meet() -> None:
    found = measure_alignment(Numbers(), records(18), AlignmentOptions(batch_size=7), UNTOLD)
    assert {pair.name: pair.sentences for pair in found.pairs} == {"de-en": 18, "de-fr": 12, "en-fr": 12}
    for pair in found.pairs:
        assert pair.there[0] == pytest.approx(pair.chance)  # all the same: luck
        assert pair.there[2] == pair.back[2] == 100  # padding counts for nothing
    assert found.layer == 2 and found.means[2] == 100 > found.means[0]


def test_languages_pivots_and_numbers_are_heeded() -> None:
    options = AlignmentOptions(("de", "fr"), sentences=5)
    assert [(p.name, p.sentences) for p in measure_alignment(Numbers(), records(18), options, UNTOLD).pairs] == [
        ("de-fr", 5)
    ]
    around = measure_alignment(Numbers(), records(18), AlignmentOptions(pivot="fr"), UNTOLD)
    assert [pair.name for pair in around.pairs] == ["de-fr", "en-fr"]
    twice = measure_alignment(Numbers(), records(6) * 2, AlignmentOptions(("de", "en")), UNTOLD)
    assert twice.pairs[0].sentences == 6  # equal ones cannot be told apart


def test_of_equal_layers_the_deepest_is_read() -> None:
    pair = PairAlignment(("de", "en"), 10, (10.0, 90.0, 80.0, 0.0), (10.0, 70.0, 80.0, 0.0))
    assert Alignment((pair,), UNTOLD).layer == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"languages": ("de",)}, "languages are de; it takes two"),
        ({"sentences": 1}, "sentences=1"),
        ({"languages": ("de", "xx")}, "no two of the wanted languages have sentences in common"),
    ],
)
def test_what_cannot_be_compared_is_one_line(options: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        measure_alignment(Numbers(), records(8), AlignmentOptions(**options), UNTOLD)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alignment")
    told = [Record(str(n), parallel={code: sentence(code, n) for code in ("de", "en")}) for n in range(40)]
    write_shards(told, folder / "data")
    torch.manual_seed(0)
    tokenizer = train_tokenizer([sentence(code, n) for code in WORDS for n in range(200)], folder / "lm", 90)
    config = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    model = LanguageModelSettings(config=config | {"num_attention_heads": 2}).build(90, 0, 2, 1)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


def test_any_causal_model_s_folder_is_probed(sentences: Path, capsys: pytest.CaptureFixture) -> None:
    output = sentences / "out" / "alignment.json"
    main(
        ["evaluate", "alignment", "--model", str(sentences / "model"), "--data", str(sentences / "data")]
        + ["--languages", "de,en", "--output", str(output)]
    )
    told = capsys.readouterr().out
    found, stored = Alignment.read(output), json.loads(output.read_text())
    assert stored["layer"] == found.layer and f"layer {found.layer} (the highest mean R@1" in told
    assert len(found.means) == 3 and "embeddings" in told
    assert Image.open(output.with_suffix(".png")).size[0] > 500
    # The same from transformers alone, for one direction of the last layer.
    model = AutoModelForCausalLM.from_pretrained(sentences / "model")
    tokenizer = AutoTokenizer.from_pretrained(sentences / "model")
    means = {}
    for code in ("de", "en"):
        rows = [tokenizer(sentence(code, n), return_tensors="pt") for n in range(40)]
        states = [model.model(**row).last_hidden_state[0].mean(0) for row in rows]
        means[code] = torch.nn.functional.normalize(torch.stack(states), dim=-1)
    distinct = len({sentence("de", n) for n in range(40)})
    assert found.pairs[0].sentences == distinct == 40
    right = (means["de"] @ means["en"].T).argmax(1) == torch.arange(40)
    assert found.pairs[0].there[2] == pytest.approx(100 * right.float().mean().item())


def test_a_model_of_views_is_probed_too(
    sentences: Path, model: CCLMModel, processor: CCLMProcessor, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "views")
    processor.save_pretrained(tmp_path / "views")
    given = [
        "--model",
        str(tmp_path / "views"),
        "--data",
        str(sentences / "data"),
        "--output",
        str(tmp_path / "a.json"),
    ]
    main(["evaluate", "alignment", *given])
    assert len(Alignment.read(tmp_path / "a.json").means) == model.config.text_layers + 1


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"--model": "runs/nowhere"}, "no tokenizer at runs/nowhere"),
        ({"--languages": "de,xx"}, "no texts in language xx"),
        ({"--output": "report.txt"}, "must be a file ending in .json"),
        ({"--data": "nowhere"}, "nowhere"),
    ],
)
def test_what_is_given_wrongly_is_one_line(
    sentences: Path, tmp_path: Path, capsys: pytest.CaptureFixture, changed: dict[str, str], told: str
) -> None:
    given = {"--model": str(sentences / "model"), "--data": str(sentences / "data")}
    given |= {"--output": str(tmp_path / "a.json")} | changed
    with pytest.raises(SystemExit):
        main(["evaluate", "alignment", *(part for pair in given.items() for part in pair)])
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
