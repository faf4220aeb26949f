"""What the reference model computes in pretraining, and its gradients, through the library's own objectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cclm.models.model import CCLMModel
from cclm.objectives.base import Draft, EncodedPair, pair_losses
from cclm.objectives.box import Box, box_losses
from cclm.objectives.contrastive import Contrastive
from cclm.objectives.matching import Matching
from cclm.objectives.tlm import TranslationLM
from cclm.types import ImageInput, PairBatch, RegionInput, TextInput
from tests.parity.conftest import Recorded, RecordedMasks, original_gradients, text

Install = Callable[[Any], None]
LOSS, EMBEDDING, STATE = 1e-5, 2e-5, 1e-4


def close(got: Tensor | float, want: Tensor | float, limit: float) -> None:
    got, want = torch.as_tensor(got, dtype=torch.float32), torch.as_tensor(want, dtype=torch.float32)
    torch.testing.assert_close(got.detach(), want, rtol=0, atol=limit)


def check_gradients(model: CCLMModel, losses: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Every parameter's gradient of the summed losses, within 1e-4, relative where it is large."""
    model.zero_grad()
    sum(losses.values()).backward()
    got = original_gradients(model)
    assert set(want) <= set(got)
    for name in got:
        if name in want:
            scale = max(1.0, float(want[name].abs().max()))
            error = float((got[name] - want[name]).abs().max()) / scale
            assert error < 1e-4, f"gradient of {name}: {error:.1e}"
        else:  # the reference did not touch it
            assert not got[name].any(), f"gradient of {name} where the reference has none"


def test_blocks(reference: Recorded) -> None:
    blocks, batch = reference.expected["blocks"], reference.expected["image_text"]["inputs"]
    model = reference.model()
    with torch.inference_mode():
        image, target = model.encode_image(batch["image"]), text(batch).encode(model)
        fused = model.fuse(target, image)
        close(image.states, blocks["image_embeds"], STATE)
        close(target.states, blocks["text_embeds"], STATE)
        close(image.embedding, blocks["image_feat"], EMBEDDING)
        close(target.embedding, blocks["text_feat"], EMBEDDING)
        close(fused, blocks["cross_embeds"], STATE)
        close(model.match_logits(fused), blocks["itm_logits"], STATE)
        if "mlm_logits" in blocks:
            masked = model.fuse(text(batch, "text_ids_masked").encode(model), image)
            close(model.mlm_logits(masked, batch["masked_pos"]), blocks["mlm_logits"], STATE)


def test_image_and_text(reference: Recorded, draws: Install) -> None:
    case = reference.expected["image_text"]
    inputs, want = case["inputs"], case["losses"]
    model = reference.model()
    draws(case["negatives"])
    losses = pair_losses(
        model,
        PairBatch("image", ImageInput(inputs["image"]), text(inputs)),
        {"contrastive": Contrastive(), "matching": Matching(), "masked_lm": RecordedMasks(inputs)},
    )
    close(losses["contrastive"], want["loss_itc"], LOSS)
    close(losses["matching"], want["loss_itm"], LOSS)
    close(losses["masked_lm"], want["loss_mlm"], LOSS)
    check_gradients(model, losses, case["grads"])


def test_text_and_text(reference: Recorded, draws: Install) -> None:
    """The masked, and matched, text is the first and the second of the recorded pair respectively."""
    case = reference.expected["text_text"]
    first, second, want = case["inputs"]["t1"], case["inputs"]["t2"], case["losses"]
    model = reference.model()
    draws(case["negatives"])
    forward = PairBatch("text", text(first), text(second))
    backward = PairBatch("text", text(second), text(first))
    losses = pair_losses(model, forward, {"contrastive": Contrastive(), "matching": Matching()})
    losses |= pair_losses(model, backward, {"masked_lm": RecordedMasks(first)})
    close(losses["contrastive"], want["loss_ttc"], LOSS)
    close(losses["matching"], want["loss_ttm"], LOSS)
    close(losses["masked_lm"], want["loss_mlm"], LOSS)
    check_gradients(model, losses, case["grads"])


def test_two_captions(swin: Recorded, draws: Install) -> None:
    """An image with captions in two languages: its contrastive loss is the mean over both."""
    case = swin.expected["image_2text"]
    inputs, want = case["inputs"], case["losses"]
    image, first, second = ImageInput(inputs["image"]), text(inputs["t1"]), text(inputs["t2"])
    model = swin.model()
    draws(case["negatives"])
    objectives = {"contrastive": Contrastive(), "matching": Matching(), "masked_lm": RecordedMasks(inputs["t1"])}
    losses = pair_losses(model, PairBatch("image", image, first), objectives)
    other = pair_losses(model, PairBatch("image", image, second), {"contrastive": Contrastive()})
    captions = pair_losses(model, PairBatch("captions", first, second), {"contrastive": Contrastive()})
    close((losses["contrastive"] + other["contrastive"]) / 2, want["loss_itc"], LOSS)
    close(losses["matching"], want["loss_itm"], LOSS)
    close(losses["masked_lm"], want["loss_mlm"], LOSS)
    close(captions["contrastive"], want["loss_ttc"], LOSS)


def test_translation_language_model(swin: Recorded) -> None:
    case = swin.expected["text_text_tlm"]
    both = case["inputs"]["t12"]
    model = swin.model()
    pair = PairBatch("text", text(case["inputs"]["t1"]), text(case["inputs"]["t2"]))
    objective = TranslationLM()
    draft = Draft(text(both, "text_ids_masked"), both["masked_pos"], both["masked_ids"])
    encoded = EncodedPair(model, pair, pair.context.encode(model), pair.target.encode(model))
    close(objective(encoded, draft, draft.text.encode(model)), case["losses"]["loss_mlm"], LOSS)
    close(Contrastive()(encoded), case["losses"]["loss_ttc"], LOSS)


def test_regions(reference: Recorded, draws: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    case = reference.expected["region"]
    inputs, want = case["inputs"], case["losses"]
    model = reference.model()
    context = RegionInput(inputs["image"], inputs["idx_to_group_img"], inputs["target_bbox"], inputs["is_image"].bool())
    patches = inputs["image_atts"][:, 1:].bool()
    if "boxes_px" in inputs:  # where they were made from boxes, so do we
        assert torch.equal(model.region_patches(context.boxes, patches.shape[1]), patches)
    monkeypatch.setattr(model, "region_patches", lambda boxes, count: patches)
    draws(case["negatives"])
    batch = PairBatch("region", context, text(inputs))
    objectives = {
        "contrastive": Contrastive(),
        "matching": Matching(),
        "masked_lm": RecordedMasks(inputs),
        "box": Box(),
    }
    losses = pair_losses(model, batch, objectives)
    close(losses["contrastive"], want["loss_itc"], LOSS)
    close(losses["matching"], want["loss_itm"], LOSS)
    close(losses["masked_lm"], want["loss_mlm"], LOSS)
    close(losses["box"], want["loss_bbox"] + want["loss_giou"], LOSS)
    check_gradients(model, losses, case["grads"]) if "grads" in case else None
    with torch.inference_mode():
        view = context.encode(model)
        predicted = model.boxes(model.fuse(batch.target.encode(model), view.whole))
        distance, apart = box_losses(predicted, context.boxes, ~context.whole)
        close(distance, want["loss_bbox"], LOSS)
        close(apart, want["loss_giou"], LOSS)
        if "pred_bbox" in case:
            close(predicted, case["pred_bbox"], EMBEDDING)
            close(view.states, case["image_embeds"], STATE)
            close(view.whole.states, case["image_embeds_full"], STATE)


def test_soft_labels_by_image(swin: Recorded, draws: Install) -> None:
    case, inputs = swin.expected["retrieval_idx"], swin.expected["image_text"]["inputs"]
    model = swin.model()
    draws(case["negatives"])
    batch = PairBatch("image", ImageInput(inputs["image"]), text(inputs), ids=case["idx"])
    objectives = {"contrastive": Contrastive(by_record=True), "matching": Matching(by_record=True)}
    losses = pair_losses(model, batch, objectives)
    close(losses["contrastive"], case["loss_itc"], LOSS)
    close(losses["matching"], case["loss_itm"], LOSS)


def test_all_of_one_record_has_no_wrong_partner(swin: Recorded) -> None:
    inputs = swin.expected["image_text"]["inputs"]
    batch = PairBatch("image", ImageInput(inputs["image"]), text(inputs), ids=torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ValueError, match="all pairs of a batch are of one record"):
        pair_losses(swin.model(), batch, {"matching": Matching(by_record=True)})


def test_a_padded_text_is_the_same_text(reference: Recorded) -> None:
    """Batches are padded to their longest text, the reference's to a fixed length: it must not matter."""
    model, inputs = reference.model(), reference.expected["image_text"]["inputs"]
    longer = TextInput(
        torch.nn.functional.pad(inputs["text_ids"], (0, 9), value=model.config.pad_token_id),
        torch.nn.functional.pad(inputs["text_atts"], (0, 9)).bool(),
    )
    with torch.inference_mode():
        image = model.encode_image(inputs["image"])
        for given in (text(inputs), longer):
            view = given.encode(model)
            close(view.embedding, reference.expected["blocks"]["text_feat"], EMBEDDING)
            logits = model.match_logits(model.fuse(view, image))
            close(logits, reference.expected["blocks"]["itm_logits"], STATE)
