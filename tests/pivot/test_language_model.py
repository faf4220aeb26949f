"""Language models of several architectures behave as in transformers, from embeddings and with padding on any side."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from cclm.objectives.base import EncodedPair
from cclm.objectives.contrastive import Contrastive
from cclm.pivot.fingerprints import agree
from cclm.pivot.label_likelihood import label_log_likelihoods
from cclm.pivot.language_model import (
    GenerationOptions,
    LanguageModel,
    LanguageModelSettings,
    LayerEncoder,
    LoraSettings,
)
from cclm.types import PairBatch, TextInput

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GEOMETRIES = {
    "llama": SMALL | {"intermediate_size": 48, "max_position_embeddings": 64},
    "qwen3": SMALL | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8},
    "gemma2": SMALL
    | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 2.0},
    "bloom": SMALL,
    "gpt_neox": SMALL | {"intermediate_size": 48},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "cohere": SMALL | {"intermediate_size": 48, "logit_scale": 0.3},
}
VOCABULARY, PAD = 50, 1


def built(kind: str, **settings: object) -> LanguageModel:
    torch.manual_seed(0)
    config = {"model_type": kind} | GEOMETRIES[kind]
    return LanguageModelSettings(config=config, **settings).build(VOCABULARY, 0, 2, PAD).eval()


@pytest.fixture(params=GEOMETRIES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return built(request.param)


def rows(left: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Two prompts with answers, 7 and 4 tokens long, padded: ids, mask, labels (2, 7)."""
    texts, answers = [[0, 5, 6, 7, 8, 9, 2], [0, 11, 12, 2]], [3, 2]
    ids, labels = torch.full((2, 7), PAD), torch.full((2, 7), -100)
    mask = torch.zeros(2, 7, dtype=torch.bool)
    for row, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        place = slice(7 - len(text), 7) if left else slice(0, len(text))
        ids[row, place], mask[row, place] = torch.tensor(text), True
        labels[row, place] = torch.tensor([-100] * (len(text) - answer) + text[len(text) - answer :])
    return ids, mask, labels


def test_loss_is_that_of_transformers(model: LanguageModel) -> None:
    ids, mask, labels = rows(left=False)
    right = model.model(input_ids=ids, attention_mask=mask.long(), labels=labels).loss
    assert torch.allclose(model.loss(model.embed(ids), mask, labels), right, atol=1e-6)


def test_logits_exist_for_answers_alone(model: LanguageModel) -> None:
    ids, mask, labels = rows(left=False)
    seen = []
    model.plain.get_output_embeddings().register_forward_hook(lambda _, inputs, output: seen.append(output.shape))
    model.loss(model.embed(ids), mask, labels)
    assert seen == [(5, VOCABULARY)]


def test_either_padding_gives_the_same_likelihoods_and_states(model: LanguageModel) -> None:
    (ids, mask, labels), (left_ids, left_mask, left_labels) = rows(left=False), rows(left=True)
    right = model.log_likelihood(model.embed(ids), mask, labels)
    assert torch.allclose(right, model.log_likelihood(model.embed(left_ids), left_mask, left_labels), atol=1e-5)
    alone = [model.log_likelihood(model.embed(ids[i : i + 1, :n]), mask[i : i + 1, :n], labels[i : i + 1, :n])
             for i, n in ((0, 7), (1, 4))]  # fmt: skip
    assert torch.allclose(right, torch.cat(alone), atol=1e-5)
    for layer, (one, other) in enumerate(
        zip(model.states(ids, mask, range(3)), model.states(left_ids, left_mask, range(3)), strict=True)
    ):
        assert torch.allclose(one[mask], other[left_mask], atol=1e-5), layer


def test_frozen_weights_pass_gradients_on(model: LanguageModel) -> None:
    ids, mask, labels = rows(left=False)
    model.requires_grad_(False)
    embeds = model.embed(ids).requires_grad_()
    model.loss(embeds, mask, labels).backward()
    assert embeds.grad is not None
    assert embeds.grad[0, 0].abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_recomputed_activations_give_the_same_gradients_also_when_frozen(model: LanguageModel) -> None:
    ids, mask, labels = rows(left=False)
    model.requires_grad_(False)
    gradients, calls = [], []
    layer = next(module for module in model.modules() if type(module).__name__.endswith(("Layer", "Block")))
    part = next(child for child in layer.children())
    part.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        embeds = model.embed(ids).requires_grad_()
        model.loss(embeds, mask, labels).backward()
        gradients.append(embeds.grad)
        model.recompute_activations()
        for module in model.modules():  # as the trainer has all that is frozen
            module.eval()
    assert len(calls) == 3  # once, then there and back
    assert torch.allclose(*gradients, atol=1e-6)


def test_generation_is_that_of_each_prompt_alone(model: LanguageModel) -> None:
    ids, mask, _ = rows(left=True)
    options = GenerationOptions(max_tokens=6)
    together = model.generate(model.embed(ids), mask, options)
    assert together == [model.generate(model.embed(ids[i : i + 1, n:]), mask[i : i + 1, n:], options)[0]
                        for i, n in ((0, 0), (1, 3))]  # fmt: skip
    # Greedy: every token is the likeliest after what stands before it.
    whole = torch.cat([ids[:1], torch.tensor(together[:1])], 1)
    likeliest = model.model(input_ids=whole).logits.argmax(-1)
    assert together[0] == likeliest[0, 6:-1].tolist()[: len(together[0])]


def test_beams_and_sampling() -> None:
    model, (ids, mask, _) = built("llama"), rows(left=True)
    beams = model.generate(model.embed(ids), mask, GenerationOptions(max_tokens=4, beams=3))
    greedy = model.generate(model.embed(ids), mask, GenerationOptions(max_tokens=4))

    @torch.no_grad()
    def likelihood(answer: list[int]) -> float:
        whole = torch.tensor([[*ids[0].tolist(), *answer]])
        asked = torch.full_like(whole, -100)
        asked[0, 7:] = whole[0, 7:]
        return float(model.log_likelihood(model.embed(whole), torch.ones_like(whole).bool(), asked))

    assert len(beams[0]) == len(greedy[0]) == 4
    assert likelihood(beams[0]) >= likelihood(greedy[0])
    before = torch.random.get_rng_state()
    drawn = [
        model.generate(model.embed(ids), mask, GenerationOptions(max_tokens=8, sample=True, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(before, torch.random.get_rng_state())


def test_answers_stream_token_by_token() -> None:
    from transformers.generation.streamers import BaseStreamer

    class Kept(BaseStreamer):
        def __init__(self) -> None:
            self.tokens, self.ended = [], False

        def put(self, value: Tensor) -> None:
            self.tokens.extend(value.flatten().tolist())

        def end(self) -> None:
            self.ended = True

    model, (ids, mask, _), kept = built("qwen3"), rows(left=True), Kept()
    (answer,) = model.generate(model.embed(ids[:1]), mask[:1], GenerationOptions(max_tokens=5), kept)
    assert kept.ended
    assert kept.tokens[: len(answer)] == answer


def test_adapters_alone_move_and_leave_the_fingerprint(model: LanguageModel, tmp_path: Path) -> None:
    kind = model.plain.config.model_type
    adapted = built(kind, lora=LoraSettings(dropout=0.0))
    assert adapted.fingerprint() == model.fingerprint()
    before = {name: value.clone() for name, value in adapted.named_parameters()}
    ids, mask, labels = rows(left=False)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # the first moves only the one factor, the other being multiplied by zero
        optimizer.zero_grad()
        adapted.loss(adapted.embed(ids), mask, labels).backward()
        optimizer.step()
    moved = {name for name, value in adapted.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert moved == {name for name in before if "lora_" in name}
    assert adapted.fingerprint() == model.fingerprint()
    adapted.save_pretrained(tmp_path)  # merged
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    logits = plain(input_ids=ids, attention_mask=mask.long()).logits[mask]
    assert torch.allclose(logits, adapted.plain(input_ids=ids, attention_mask=mask.long()).logits[mask], atol=1e-4)
    assert adapted.adapted


def test_fingerprint_tells_models_apart_but_not_their_precision(tmp_path: Path) -> None:
    model = built("llama")
    model.save_pretrained(tmp_path)
    again, half = (LanguageModelSettings(str(tmp_path), dtype=dtype).build(VOCABULARY, 0, 2, PAD)
                   for dtype in ("float32", "bfloat16"))  # fmt: skip
    assert model.fingerprint() == again.fingerprint() == half.fingerprint()
    assert half.embed(torch.tensor([[5]])).dtype == torch.bfloat16
    torch.manual_seed(1)
    config = {"model_type": "llama"} | GEOMETRIES["llama"]
    other = LanguageModelSettings(config=config).build(VOCABULARY, 0, 2, PAD)
    assert not agree(model.fingerprint(), other.fingerprint())
    with torch.no_grad():
        again.plain.model.layers[1].mlp.up_proj.weight.add_(0.01)  # as adapters do that are merged
    assert not agree(model.fingerprint(), again.fingerprint())


def test_float16_is_refused_as_its_weights_are_others() -> None:
    with pytest.raises(ValueError, match="language_model.dtype is 'float16'; allowed: float32, bfloat16"):
        LanguageModelSettings("somewhere", dtype="float16")


def test_labels_need_a_memory_that_can_be_repeated() -> None:
    geometry = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    model = LanguageModelSettings(config={"model_type": "mamba"} | geometry).build(VOCABULARY, 0, 2, PAD).eval()
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(ValueError, match="the memory of a MambaForCausalLM cannot be repeated for several labels"):
        label_log_likelihoods(model, model.embed(ids), torch.ones_like(ids).bool(), [[5, 6], [7]])


def test_geometry_and_ends_are_read_from_the_folder(tmp_path: Path) -> None:
    model = built("gpt2")
    model.plain.generation_config.eos_token_id = [2, 7]
    model.save_pretrained(tmp_path)
    again = LanguageModelSettings(str(tmp_path)).build(VOCABULARY, 0, 3, PAD)
    assert (again.width, again.depth, again.context_length, again.stop) == (32, 2, 64, (2, 3, 7))
    assert built("bloom").context_length > 10**6


def test_new_models_begin_with_logits_of_size_one(model: LanguageModel) -> None:
    deviation = model.plain.get_input_embeddings().weight.std().item()
    assert deviation == pytest.approx(32**-0.5, rel=0.1)
    config = {"model_type": "llama", "initializer_range": 0.5} | GEOMETRIES["llama"]
    given = LanguageModelSettings(config=config).build(VOCABULARY, 0, 2, PAD)
    assert given.plain.get_input_embeddings().weight.std().item() == pytest.approx(0.5, rel=0.1)


def test_contrastive_trains_the_states_of_a_layer() -> None:
    model = built("llama")
    scale = torch.nn.Parameter(torch.tensor(1 / 0.07).log())
    encoder = LayerEncoder(model, 1, scale)
    ids, mask, _ = rows(left=False)
    batch = PairBatch("pairs", TextInput(ids, mask), TextInput(ids.flip(0), mask.flip(0)))
    context, target = batch.context.encode(encoder), batch.target.encode(encoder)
    assert torch.allclose(context.embedding.norm(dim=-1), torch.ones(2))
    mean = context.states[1, :4].mean(0)
    assert torch.allclose(context.embedding[1], mean / mean.norm(), atol=1e-6)
    loss = Contrastive()(EncodedPair(encoder, batch, context, target))
    loss.backward()
    assert loss.item() > 1  # the partners stand at the wrong places
    assert scale.grad is not None
    layers = model.plain.base_model.layers
    assert layers[0].mlp.up_proj.weight.grad.abs().sum() > 0
    assert layers[1].mlp.up_proj.weight.grad is None  # above the layer


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "neither of pretrained and config"),
        ({"pretrained": "x", "config": {"model_type": "llama"}}, "both of pretrained and config"),
        ({"config": {"model_type": "lama"}}, "did you mean 'llama'"),
        ({"config": {"model_type": "llama", "hiden_size": 8}}, "did you mean 'hidden_size'"),
        ({"config": {"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4}}, "no llama comes out of it"),
        ({"config": {"model_type": "bert"}}, "no causal language model"),
        (
            {"config": {"model_type": "llama", "vocab_size": 10} | GEOMETRIES["llama"]},
            "50 tokens, the language model 10",
        ),
        ({"config": {"model_type": "llama"}, "dtype": "int8"}, "allowed: float32"),
        ({"config": {"model_type": "llama"}, "quantize": "4bit"}, "for a pretrained model"),
        ({"pretrained": "runs/nowhere"}, "no language model at runs/nowhere"),
        (
            {"config": {"model_type": "llama"} | GEOMETRIES["llama"], "lora": LoraSettings(targets=["nothing"])},
            "language_model.lora",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(settings: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        LanguageModelSettings(**settings).build(VOCABULARY, 0, 2, PAD)
    assert "\n" not in str(caught.value)


def test_a_damaged_folder_is_one_line(tmp_path: Path) -> None:
    built("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="no language model at"):
        LanguageModelSettings(str(tmp_path)).build(VOCABULARY, 0, 2, PAD)


def test_a_folder_of_a_model_made_with_a_language_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "cclm_image_to_text"}')
    with pytest.raises(ValueError, match="holds a model of type cclm_image_to_text; name the folder of what it was"):
        LanguageModelSettings(str(tmp_path)).build(VOCABULARY, 0, 2, PAD)


def test_quantising_without_the_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else found(name, *more)
    )
    built("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        LanguageModelSettings(str(tmp_path), quantize="4bit").build(VOCABULARY, 0, 2, PAD)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_quantised_weights_pass_gradients_on(tmp_path: Path, quantize: str, lora: LoraSettings | None) -> None:
    model, (ids, mask, labels) = built("llama"), rows(left=False)
    model.save_pretrained(tmp_path)
    small = LanguageModelSettings(str(tmp_path), quantize=quantize, lora=lora).build(VOCABULARY, 0, 2, PAD).eval()
    embeds = small.embed(ids).detach().requires_grad_()
    loss = small.loss(embeds, mask, labels)
    loss.backward()
    far = {"4bit": 1.0, "8bit": 0.1}[quantize]  # weights drawn at random are rounded badly
    assert loss.item() == pytest.approx(model.loss(model.embed(ids), mask, labels).item(), abs=far)
    assert embeds.grad is not None and embeds.grad.abs().sum() > 0
    assert small.fingerprint().endswith(".") and agree(small.fingerprint(), model.fingerprint())


def test_a_prompt_over_the_context_is_one_line() -> None:
    model = built("llama")
    ids = torch.full((1, 65), 5)
    mask = torch.ones_like(ids).bool()
    with pytest.raises(ValueError, match="65 tokens, but the language model holds 64"):
        model.loss(model.embed(ids), mask, ids)
    with pytest.raises(ValueError, match="60 tokens and an answer of up to 5"):
        model.generate(model.embed(ids[:, :60]), mask[:, :60], GenerationOptions(max_tokens=5))
    with pytest.raises(ValueError, match="shorten the prompt, give a picture fewer states or lower max_tokens"):
        model.states(ids, mask, [1])
    with pytest.raises(ValueError, match="layer 3: this language model has 0"):
        LayerEncoder(model, 3, torch.zeros(()))


def test_settings_of_the_folder_do_not_write_along() -> None:
    model, (ids, mask, _) = built("llama"), rows(left=True)
    options = GenerationOptions(max_tokens=6, repetition_penalty=1.5, no_repeat=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = model.generate(model.embed(ids), mask, options)
    own = model.plain.generation_config
    own.suppress_tokens, own.min_new_tokens = sorted({token for row in written for token in row}), 6
    assert model.generate(model.embed(ids), mask, options) == written and model.plain.generation_config is own


@pytest.mark.parametrize("sample", [False, True])
def test_broken_states_are_one_line(sample: bool) -> None:
    model, (ids, mask, _) = built("llama"), rows(left=True)
    with pytest.raises(ValueError, match="has NaN or infinity: the weights of the bridge"):
        model.generate(model.embed(ids) * torch.nan, mask, GenerationOptions(max_tokens=6, sample=sample))


@pytest.mark.parametrize(
    "options", [{"max_tokens": 0}, {"beams": 0}, {"temperature": 0.0}, {"top_p": 1.5}, {"top_k": 5}, {"seed": -1}]
)
def test_generation_options_out_of_range(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        GenerationOptions(**options)
