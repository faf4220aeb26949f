"""The four fine-tuned heads of the reference: logits, losses, the rerank matrix, the ranking of answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cclm.evaluation import metrics
from cclm.evaluation.answering import RankOptions, rank_answers
from cclm.models.adapt import adapted, adapted_config
from cclm.models.convert import ConvertOptions, convert
from cclm.models.encoding import EncodedImages, EncodedTexts, EncodingOptions, match_logits
from cclm.objectives.answering import Answering
from cclm.objectives.base import pair_losses
from cclm.objectives.classification import Classification
from cclm.objectives.contrastive import Contrastive
from cclm.objectives.matching import Matching
from cclm.types import ImageInput, ImagesInput, Labels, PairBatch, TextInput
from tests.parity.conftest import Recorded, text
from tests.parity.test_pretraining import EMBEDDING, LOSS, STATE, close


def labelled(names: tuple[str, ...]) -> Labels:
    """One label for each pair; their tokens are of no use to a classifier."""
    count = len(names)
    ids = torch.zeros(count, 2, dtype=torch.int64)
    return Labels(names, TextInput(ids, ids == 0), torch.arange(count), torch.ones(count))


def test_xvnli(swin: Recorded) -> None:
    case, inputs = swin.expected["finetune"]["xvnli"], swin.expected["image_text"]["inputs"]
    model = swin.model("finetuned_xvnli")
    assert model.config.labels == ["contradiction", "entailment", "neutral"]
    names = tuple(model.config.labels) * 2  # what the recorded loss was of
    batch = PairBatch("xvnli", ImageInput(inputs["image"]), text(inputs), labels=labelled(names))
    loss = pair_losses(model, batch, {"classification": Classification()})["classification"]
    close(loss, case["loss"], LOSS)
    with torch.inference_mode():
        readings = model.readings(batch.context.encode(model))
        close(model.class_logits(batch.target.encode(model), readings), case["logits"], STATE)


def test_two_images(swin: Recorded) -> None:
    case, inputs = swin.expected["finetune"]["nlvr"], swin.expected["image_text"]["inputs"]
    model = swin.model("finetuned_nlvr")
    assert (model.config.fusion_layers, len(model.fusion.blocks)) == (6, 12)
    images = ImagesInput(torch.stack([inputs["image"][:3], inputs["image"][3:]], dim=1))  # (3, 2, 3, H, W)
    target = TextInput(inputs["text_ids"][:3], inputs["text_atts"][:3].bool())
    batch = PairBatch("nlvr", images, target, labels=labelled(("False", "True", "True")))
    close(pair_losses(model, batch, {"classification": Classification()})["classification"], case["loss"], LOSS)
    with torch.inference_mode():
        readings = model.readings(images.encode(model))
        close(model.class_logits(target.encode(model), readings), case["logits"], STATE)


def test_pretrained_weights_start_the_form_with_two_images(swin: Recorded) -> None:
    """As the original initialises it: only the classifier is new, and each block starts as its layer was."""
    found = convert(str(swin.folder / "pretrain.th"), ConvertOptions())
    changes = {"heads": ["classify"], "labels": ["False", "True"], "images_per_text": 2, "embedding_size": 0}
    config = adapted_config(found.config, changes)
    weights, report = adapted(found.state, found.config, config)
    theirs = {name.replace("class_head", "cls_head") for name in report.new}
    assert theirs == set(swin.expected["finetune"]["nlvr"]["init_params"])
    for layer in range(6):
        source = found.state[f"fusion.blocks.{layer}.cross_attention.query.weight"]
        for block in (2 * layer, 2 * layer + 1):
            assert torch.equal(weights[f"fusion.blocks.{block}.cross_attention.query.weight"], source)


def test_answer_decoder(swin: Recorded) -> None:
    case, inputs = swin.expected["finetune"]["vqa"], swin.expected["image_text"]["inputs"]
    model = swin.model("finetuned_vqa")
    answers = text(case["answers"])
    owner = torch.repeat_interleave(torch.arange(6), torch.tensor(case["n"]))
    labels = Labels(("",) * 8, answers, owner, case["weights"])
    batch = PairBatch("xgqa", ImageInput(inputs["image"]), text(inputs), labels=labels)
    loss = pair_losses(model, batch, {"answering": Answering()})["answering"]
    close(loss / case["loss"], 1.0, LOSS)
    with torch.inference_mode():
        target = batch.target.encode(model)
        question = model.project_question(model.fuse(target, batch.context.encode(model)), target)
        rows, shares = rank_answers(model, answers, question, RankOptions(candidates=4, first_token="twice", rows=5))
        assert torch.equal(rows, case["topk_ids"])
        close(shares, case["topk_probs"], EMBEDDING)
        once, _ = rank_answers(model, answers, question, RankOptions(candidates=8))
        losses = model.answer_losses(answers.select(once[0]), question.select(torch.zeros(8, dtype=torch.int64)))
        assert torch.equal(losses, losses.sort().values)  # the plain likelihood orders them


def test_an_answer_decoder_starts_as_the_fusion(swin: Recorded) -> None:
    found = convert(str(swin.folder / "pretrain.th"), ConvertOptions())
    weights, report = adapted(found.state, found.config, adapted_config(found.config, {"heads": ["answer"]}))
    assert report.new == []  # as in the original, nothing of it is new
    assert torch.equal(weights["answer_decoder.embeddings.word.weight"], found.state["embeddings.word.weight"])
    for layer in range(6):
        name = f"blocks.{layer}.cross_attention.key.weight"
        assert torch.equal(weights[f"answer_decoder.stack.{name}"], found.state[f"fusion.{name}"])


def test_retrieval_losses(swin: Recorded, draws: Callable[[Any], None]) -> None:
    case, inputs = swin.expected["finetune"]["retrieval"], swin.expected["image_text"]["inputs"]
    ids = swin.expected["retrieval_idx"]["idx"]
    model = swin.model()
    draws(case["negatives"])
    batch = PairBatch("image", ImageInput(inputs["image"]), text(inputs), ids=ids)
    objectives = {"contrastive": Contrastive(by_record=True), "matching": Matching(by_record=True)}
    losses = pair_losses(model, batch, objectives)
    for loss, want in zip(losses.values(), case["losses"], strict=True):
        close(loss, want, LOSS)


def test_rerank_matrix(swin: Recorded) -> None:
    """For each image the three nearest texts get the matching head's logit, the others none."""
    case, inputs = swin.expected["finetune"]["retrieval"], swin.expected["image_text"]["inputs"]
    model = swin.model()
    with torch.inference_mode():
        view, read = model.encode_image(inputs["image"]), text(inputs).encode(model)
    images = EncodedImages(view, torch.arange(6))
    states = [row[mask] for row, mask in zip(read.states, read.mask, strict=True)]
    texts = EncodedTexts(read.embedding, torch.arange(6), states)
    close(images.embeddings @ texts.embeddings.T, case["sims"], EMBEDDING)
    _, rows = metrics.top(images.embeddings, texts.embeddings, 3)  # (6, 3)
    pairs = torch.stack([torch.arange(6)[:, None].expand(6, 3), rows], dim=2).flatten(0, 1)
    logits = match_logits(model, images, texts, pairs, EncodingOptions())[:, 1]
    matrix = torch.full((6, 6), -100.0).index_put((pairs[:, 0], pairs[:, 1]), logits)
    close(matrix, case["i2t_rerank_k3"], STATE)


@pytest.mark.parametrize("name", ["finetuned_xvnli", "finetuned_nlvr", "finetuned_vqa"])
def test_a_model_without_projections_does_not_retrieve(swin: Recorded, name: str) -> None:
    model = swin.model(name)
    assert model.encode_image(swin.expected["image_text"]["inputs"]["image"]).embedding.shape == (6, 0)
    with pytest.raises(ValueError, match="no projections"):
        model.scale()
    with pytest.raises(ValueError, match='no head "match"'):
        model.match_logits(torch.zeros(1, 1, 64))
