"""Do the pivots' language models translate what they never saw, and do their states meet? chrF, BLEU and the probe.

python benchmarks/pivot_languages.py            # minutes on one core; writes results/pivot_languages.json
python benchmarks/pivot_languages.py --smoke    # 20 sentences a model, nothing written

Models: those of configs/pivot/*_lm*.yaml that have been trained, each on what no training has read: photos on the 1,081
five-way captions of the dev photos, of which one sentence, a Czech one, is in a training set; scenes on the sentences
of scenes that no picture was trained on (their language models have read them: what is held out there is the pictures).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers
from machine import facts, write

from cclm.data.shards import read_records
from cclm.evaluation.alignment import AlignmentOptions, measure_alignment
from cclm.evaluation.report import Provenance
from cclm.pivot.generation import GenerationOptions
from cclm.pivot.language_model import LanguageModel, LanguageModelSettings
from cclm.pivot.processor import PivotProcessor
from cclm.verbs.alignment import opened

DATA = {
    "photos": ("data/photos/dev", ("en", "de", "fr", "cs", "pt")),
    "scenes": ("data/scenes/test", ("en", "de", "tr", "zh")),
}
MODELS = [f"{data}_lm{kind}" for data in DATA for kind in ("", "_aligned", "_english")]
BATCH = 50


def translations(
    model: LanguageModel, processor: PivotProcessor, sentences: list[dict[str, str]], source: str, target: str
) -> list[str]:
    """Greedy ones of every sentence."""
    options = GenerationOptions(max_tokens=processor.max_tokens)
    written: list[str] = []
    for start in range(0, len(sentences), BATCH):
        asked = [
            processor.prompt(processor.template, target, each[source]) for each in sentences[start : start + BATCH]
        ]
        prompts = processor.prompts(asked, left=True)
        ids = model.generate(model.embed(prompts.input_ids), prompts.attention_mask, options)
        written += processor.decode(ids)
    return written


def scores(written: list[str], right: list[str], language: str) -> dict[str, Any]:
    """Against what people wrote, whatever the tokenizer knows of it; upper case aside, which some models never see."""
    from sacrebleu.metrics import BLEU, CHRF

    metrics = {"chrF": CHRF(lowercase=True), "BLEU": BLEU(tokenize="zh" if language == "zh" else "13a", lowercase=True)}
    found = {name: round(metric.corpus_score(written, [right]).score, 1) for name, metric in metrics.items()}
    equal = sum(a.lower() == b.lower() for a, b in zip(written, right, strict=True))
    signatures = {name: str(metric.get_signature()) for name, metric in metrics.items()}
    return found | {"exact": round(100 * equal / len(right), 1), "signatures": signatures}


def measured(name: str, limit: int | None) -> dict[str, Any]:
    """Of one model: every direction from and into English, examples, and the probe."""
    folder = f"runs/{name}/pretrained"
    data, languages = DATA[name.split("_")[0]]
    sentences = [r.parallel for r in read_records(data) if set(languages) <= set(r.parallel)][:limit]
    processor = PivotProcessor.from_pretrained(folder)
    tokenizer = processor.tokenizer
    special = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    model = LanguageModelSettings(folder).build(len(tokenizer), *special).eval()
    found: dict[str, Any] = {"sentences": len(sentences), "directions": {}, "examples": {}}
    for other in languages[1:]:
        for source, target in (("en", other), (other, "en")):
            written = translations(model, processor, sentences, source, target)
            right = [each[target] for each in sentences]
            found["directions"][f"{source}-{target}"] = scores(written, right, target)
            found["examples"][f"{source}-{target}"] = [sentences[0][source], written[0], right[0]]
    probe = measure_alignment(
        opened(folder, 64, "cpu"), read_records(data), AlignmentOptions(languages), Provenance(folder, "", data, "", "")
    )
    means = [round(value, 1) for value in probe.means]
    found["alignment"] = {"R@1": means, "layer": probe.layer, "chance": round(probe.pairs[0].chance, 2)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    there = [name for name in MODELS if Path(f"runs/{name}/pretrained/config.json").is_file()]
    result = {name: measured(name, 20 if given.smoke else None) for name in there}
    missing = [name for name in MODELS if name not in there]
    if given.smoke:
        print(result, missing)
    else:
        write("pivot_languages", facts(torch=torch.__version__) | {"models": result, "not_trained": missing})


if __name__ == "__main__":
    main()
