"""Every objective against a plain computation of the same thing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cclm.models.model import CCLMModel
from cclm.objectives.base import EncodedPair, Objective, pair_losses
from cclm.objectives.contrastive import Contrastive
from cclm.objectives.masked_lm import MaskedLM, recovery_loss
from cclm.objectives.matching import Matching, draw_negatives
from cclm.objectives.sigmoid import Sigmoid
from cclm.objectives.tlm import TranslationLM
from cclm.types import ImageInput, PairBatch, TextInput
from tests.models.test_model import texts, tiny


def batch(model: CCLMModel, rows: int = 6, kind: str = "image") -> PairBatch:
    target = TextInput(*texts(rows, 10))
    if kind == "image":
        return PairBatch("s", ImageInput(torch.randn(rows, 3, 32, 32, generator=_seed(4))), target)
    other = TextInput(*texts(rows, 7))
    return PairBatch("s", other, target)


def _seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def encoded(model: CCLMModel, pairs: PairBatch) -> EncodedPair:
    return EncodedPair(model, pairs, pairs.context.encode(model), pairs.target.encode(model), _seed(0))


def others(count: int) -> torch.Tensor:
    """Every partner but a pair's own."""
    return ~torch.eye(count, dtype=torch.bool)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_contrastive(kind: str) -> None:
    model = tiny()
    pair = encoded(model, batch(model, kind=kind))
    logits = (pair.context.embedding @ pair.target.embedding.T) * model.logit_scale.exp()
    labels = torch.arange(6)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    assert torch.allclose(Contrastive()(pair), expected)


def test_sigmoid() -> None:
    model = tiny()
    pair = encoded(model, batch(model))
    logits = (pair.context.embedding @ pair.target.embedding.T) * model.logit_scale.exp() - 10
    wanted = torch.eye(6)
    expected = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / 6
    assert torch.allclose(Sigmoid()(pair), expected, rtol=1e-4)


def test_matching_scores_true_pairs_against_drawn_ones() -> None:
    model = tiny()
    pairs = batch(model)
    loss = Matching()(encoded(model, pairs))
    pair = encoded(model, pairs)  # the same generator state: the same negatives
    contexts, targets = draw_negatives(pair, others(6))
    rows = torch.arange(6)
    combinations = [(rows, rows, 1), (rows, contexts, 0), (targets, rows, 0)]
    expected = torch.cat(
        [
            F.cross_entropy(
                model.match_logits(model.fuse(pair.target.select(t), pair.context.select(c))),
                torch.full((6,), label),
                reduction="none",
            )
            for t, c, label in combinations
        ]
    ).mean()
    assert torch.allclose(loss, expected, atol=1e-6)


@pytest.mark.parametrize("hardness", [1.0, 0.3, 0.0])
def test_negatives_are_wrong_partners_as_likely_as_their_similarity_and_the_hardness_say(hardness: float) -> None:
    model = tiny()
    pair = encoded(model, batch(model, rows=8))
    drawn = [draw_negatives(pair, others(8), hardness) for _ in range(300)]
    assert all(
        (contexts != torch.arange(8)).all() and (targets != torch.arange(8)).all() for contexts, targets in drawn
    )
    similarity = (pair.target.embedding @ pair.context.embedding.T * model.scale()).fill_diagonal_(-torch.inf)
    expected = (hardness * similarity).nan_to_num(nan=-torch.inf).fill_diagonal_(-torch.inf).softmax(1)
    counts = torch.stack([F.one_hot(contexts, 8) for contexts, _ in drawn]).float().mean(0)
    assert (counts - expected).abs().max() < 0.12


def test_matching_uses_its_hardness() -> None:
    model = tiny()
    pairs = batch(model)
    torch.nn.init.constant_(model.logit_scale, 6.0)  # so similar is always nearest
    losses = {hardness: float(Matching(hardness=hardness)(encoded(model, pairs)).detach()) for hardness in (0.0, 1.0)}
    assert losses[0.0] != losses[1.0]
    with pytest.raises(ValueError, match="hardness is -1"):
        Matching(hardness=-1)


def test_matching_needs_two_pairs() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="stream s: matching needs 2 pairs"):
        Matching()(encoded(model, batch(model, rows=1)))


@pytest.mark.parametrize("kind", ["image", "text"])
def test_masked_lm_predicts_in_the_light_of_the_context(kind: str) -> None:
    model = tiny()
    pairs, objective = batch(model, kind=kind), MaskedLM()
    draft = objective.draft(model, pairs, _seed(1))
    pair = encoded(model, pairs)
    view = draft.text.encode(model)
    logits = model.mlm_logits(model.fuse(view, pair.context), draft.positions)
    expected = F.cross_entropy(logits.flatten(0, 1), draft.labels.flatten(), ignore_index=-100)
    assert torch.allclose(objective(pair, draft, view), expected, atol=1e-5)


def test_both_ways_to_the_vocabulary_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch without a fused linear cross-entropy takes the other path: same loss, same gradients."""
    if not hasattr(F, "linear_cross_entropy"):
        pytest.skip("this torch has one path only")
    model = tiny()
    pairs = batch(model)
    draft = MaskedLM().draft(model, pairs, _seed(1))

    def run() -> tuple[Tensor, Tensor]:
        model.zero_grad()
        fused = model.fuse(draft.text.encode(model), pairs.context.encode(model))
        loss = recovery_loss(model, fused, draft)
        loss.backward()
        return loss.detach(), model.embeddings.word.weight.grad.clone()

    fused = run()
    monkeypatch.delattr(F, "linear_cross_entropy")
    plain = run()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(fused, plain, strict=True))


def test_tlm_reads_two_texts_end_to_end() -> None:
    model = tiny()
    pairs, objective = batch(model, kind="text"), TranslationLM()
    draft = objective.draft(model, pairs, _seed(1))
    lengths = pairs.context.attention_mask.sum(1) + pairs.target.attention_mask.sum(1)
    assert torch.equal(draft.text.attention_mask.sum(1), lengths)
    assert (draft.text.input_ids[~draft.text.attention_mask] == 1).all()
    assert objective(encoded(model, pairs), draft, draft.text.encode(model)).isfinite()
    with pytest.raises(ValueError, match="stream s: tlm reads two texts"):
        objective.draft(model, batch(model), _seed(1))


@pytest.mark.parametrize("kind", ["image", "text"])
def test_one_pass_gives_what_separate_passes_give(kind: str) -> None:
    """Clean and masked texts share one encoder call and all objectives one projection of the context."""
    model = tiny()
    pairs = batch(model, kind=kind)
    objectives: dict[str, Objective] = {"contrastive": Contrastive(), "masked_lm": MaskedLM(), "matching": Matching()}
    calls = _counted(model)
    together = pair_losses(model, pairs, objectives, _seed(7))
    assert calls == {"text": 1 if kind == "image" else 2, "project": 1}
    generator = _seed(7)
    draft = objectives["masked_lm"].draft(model, pairs, generator)
    pair = encoded(model, pairs)
    pair.generator = generator
    assert torch.allclose(together["contrastive"], Contrastive()(pair), atol=1e-6)
    assert torch.allclose(together["masked_lm"], MaskedLM()(pair, draft, draft.text.encode(model)), atol=1e-5)
    assert torch.allclose(together["matching"], Matching()(pair), atol=1e-5)


def _counted(model: CCLMModel) -> dict[str, int]:
    calls = {"text": 0, "project": 0}

    def counted(name: str, method: Callable) -> Callable:
        def call(*args: object) -> object:
            calls[name] += 1
            return method(*args)

        return call

    model.encode_text = counted("text", model.encode_text)
    model.project = counted("project", model.project)
    return calls


def test_a_row_budget_looks_at_the_first_pairs_only() -> None:
    model = tiny()
    pairs = batch(model)
    draft = MaskedLM(rows=2).draft(model, pairs, _seed(1))
    assert draft.labels.shape[0] == 2
    losses = pair_losses(model, pairs, {"masked_lm": MaskedLM(rows=2), "matching": Matching(rows=3)}, _seed(1))
    assert all(loss.isfinite() for loss in losses.values())
