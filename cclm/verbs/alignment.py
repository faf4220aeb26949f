"""`cclm evaluate alignment`: in which layer of a text model translations meet."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.verbs.inputs import codes, device_named, load

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from torch import Tensor

    from cclm.evaluation.alignment import LayeredModel
    from cclm.models.model import CCLMModel
    from cclm.models.processor import CCLMProcessor
    from cclm.pivot.language_model import LanguageModel


def options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=str, required=True, help="a causal language model's folder or hub name, or one of `cclm fit`"
    )
    parser.add_argument("--data", type=str, required=True, help="a split folder of shards with parallel sentences")
    parser.add_argument("--languages", type=list[str] | str | None, default=None, help="de,fr; all by default")
    parser.add_argument("--pivot", type=str, default=None, help="only pairs with this language; all by default")
    parser.add_argument("--sentences", type=int, default=1000, help="of a pair, at most")
    parser.add_argument("--max_tokens", type=int, default=128, help="of a sentence")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--output", type=Path, required=True, help="alignment.json; the chart goes beside it")
    parser.add_argument("--device", default="cpu", help="cpu, cuda ..")


def run(given: Namespace) -> None:
    """Everything that can be wrong is looked at before the work; then the report is written and shown."""
    from rich.console import Console

    from cclm.data.shards import MANIFEST, check_languages, list_shards, read_records
    from cclm.evaluation.alignment import RULE, Alignment, AlignmentOptions, measure_alignment, table
    from cclm.evaluation.report import Provenance, check_output
    from cclm.storage import file_hash, pretrained_hash

    output = check_output(given.output, Alignment.read)
    languages = codes(given.languages)
    chosen = AlignmentOptions(languages, given.pivot, given.sentences, given.batch_size)
    list_shards(given.data)
    check_languages(given.data, [*(languages or ()), *([given.pivot] if given.pivot else [])])
    model = opened(given.model, given.max_tokens, given.device)
    folder, manifest = Path(given.model), Path(given.data) / MANIFEST
    provenance = Provenance(
        given.model,
        pretrained_hash(folder) if folder.is_dir() else "",
        given.data,
        file_hash(manifest) if manifest.is_file() else "",
        date.today().isoformat(),
    )
    found = measure_alignment(model, read_records(given.data), chosen, provenance)
    found.write(output)
    Console().print(table(found))
    print(f"layer {found.layer} ({RULE}), in {output}; chart in {output.with_suffix('.png')}")


def opened(name: str, max_tokens: int, device: str) -> LayeredModel:
    """A causal language model, or the text encoder of a CCLM model. Errors: ValueError where there is none."""
    from transformers.utils import logging as transformers_logging

    from cclm.models.processor import ImageSettings
    from cclm.pivot.language_model import LanguageModelSettings
    from cclm.pivot.text_encoders import TextEncoderSettings

    transformers_logging.disable_progress_bar()
    settings = TextEncoderSettings(name)
    if settings.is_cclm:
        return CCLMLayers(*load(Path(name), device))
    place = device_named(device)
    processor = settings.processor(ImageSettings(), max_tokens)
    tokenizer = processor.tokenizer
    special = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    model = LanguageModelSettings(name).build(len(tokenizer), *special).eval().to(place)
    processor.max_tokens = min(max_tokens, model.context_length)
    return LanguageModelLayers(model, processor)


class LanguageModelLayers:
    """The layers of a language model; texts stand between what its tokenizer puts around them."""

    def __init__(self, model: LanguageModel, processor: CCLMProcessor) -> None:
        self.model, self.processor = model, processor

    def layer_states(self, texts: Sequence[str]) -> tuple[Sequence[Tensor], Tensor]:
        tokens = self.processor.texts(list(texts)).to(next(self.model.parameters()).device)
        layers = range(self.model.depth + 1)
        return self.model.states(tokens.input_ids, tokens.attention_mask, layers), tokens.attention_mask


class CCLMLayers:
    """The layers of a CCLM model's text encoder, the last with its norm."""

    def __init__(self, model: CCLMModel, processor: CCLMProcessor) -> None:
        self.model, self.processor = model, processor

    def layer_states(self, texts: Sequence[str]) -> tuple[Sequence[Tensor], Tensor]:
        tokens = self.processor.texts(list(texts)).to(self.model.device)
        embeddings = self.model.embeddings(tokens.input_ids)
        inner: list[Tensor] = []
        hooks = [
            block.register_forward_hook(lambda _, given, states: inner.append(states))
            for block in self.model.text_encoder.blocks[:-1]
        ]
        last = self.model.text_encoder(embeddings, tokens.attention_mask)
        for hook in hooks:
            hook.remove()
        return [embeddings, *inner, last], tokens.attention_mask
