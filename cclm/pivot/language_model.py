"""Any causal language model of transformers, read and trained through its input embeddings.

Shapes: B texts, L tokens, D width, V vocabulary, N answer tokens of a batch.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from cclm.errors import first_line
from cclm.models.names import is_here, quiet
from cclm.pivot.fingerprints import fingerprint
from cclm.pivot.folders import check_plain
from cclm.pivot.generation import GenerationOptions, generation_config
from cclm.pivot.lora import LoraSettings
from cclm.types import View

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.generation.streamers import BaseStreamer

IGNORED = -100  # the label of a token from which nothing is to be learned
DTYPES = ("float32", "bfloat16")  # float16 rounds to weights of no known fingerprint, and overflows


@dataclass(frozen=True)
class LanguageModelSettings:
    """Which language model, and in which form.

    `pretrained`: a transformers folder or a name of the hub. Without, `config` is a new model's `model_type` (llama,
    qwen3, gemma2, bloom ..) and what its geometry has in transformers' own names (hidden_size, num_hidden_layers ..).
    `dtype`: of its weights. `quantize`: "4bit" or "8bit" (bitsandbytes), for a pretrained one whose weights stay as
    they are. `lora`: train adapters in place of its weights. `recompute_activations`: less memory, a third slower.
    """

    pretrained: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    quantize: Literal["4bit", "8bit"] | None = None
    lora: LoraSettings | None = None
    recompute_activations: bool = False

    def __post_init__(self) -> None:
        if (self.pretrained is None) == (not self.config):
            given = "both" if self.pretrained else "neither"
            raise ValueError(
                f"language_model: {given} of pretrained and config given; name a folder to load, or in config the "
                "model_type and geometry of a new model"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"language_model.dtype is {self.dtype!r}; allowed: {', '.join(DTYPES)}")
        if self.quantize not in (None, "4bit", "8bit"):
            raise ValueError(f"language_model.quantize is {self.quantize!r}; allowed: 4bit, 8bit, null")
        if self.quantize and not self.pretrained:
            raise ValueError("language_model.quantize is for a pretrained model; a new one must train: set it to null")

    def build(self, vocab_size: int, bos: int | None, eos: int, pad: int) -> LanguageModel:
        """The model for a tokenizer of `vocab_size` tokens and these special ids.

        Errors: ValueError where there is no such model, it is none that writes, it has fewer tokens than the tokenizer,
        and where a package is missing.
        """
        model = self._loaded() if self.pretrained else self._new(vocab_size, {"bos": bos, "eos": eos, "pad": pad})
        rows = model.get_input_embeddings().weight.shape[0]
        if rows < vocab_size:
            raise ValueError(
                f"the tokenizer has {vocab_size} tokens, the language model {rows}; use the tokenizer that it was "
                "trained with"
            )
        ends = model.generation_config.eos_token_id if model.generation_config else None
        stop = {eos, *(ends if isinstance(ends, list) else [ends] if ends is not None else [])}
        wrapped = LanguageModel(self.lora.add_to(model) if self.lora else model, pad, sorted(stop))
        if self.recompute_activations:
            wrapped.recompute_activations()
        return wrapped

    def _loaded(self) -> PreTrainedModel:
        name = str(self.pretrained)
        if is_here(name) and not Path(name).is_dir():
            raise ValueError(f"no language model at {name}; train one with `cclm fit`, or check the path")
        check_plain(Path(name))
        options: dict[str, Any] = {"dtype": getattr(torch, self.dtype), "use_safetensors": True}
        try:
            with quiet():
                config = AutoConfig.from_pretrained(name)
            _check_writes(config, name)
            if self.quantize:
                options["quantization_config"] = self._quantization()
            with quiet():
                return AutoModelForCausalLM.from_pretrained(name, config=config, **options)
        except _Unfit:
            raise
        except Exception as error:  # damaged files raise whatever the reading of them does
            raise ValueError(f"no language model at {name} ({first_line(error)}); check the name") from None

    def _quantization(self) -> BitsAndBytesConfig:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise _Unfit(
                f"language_model.quantize={self.quantize} needs the package bitsandbytes, which is not installed; pip "
                "install bitsandbytes, or set quantize to null"
            )
        if self.quantize == "8bit":
            return BitsAndBytesConfig(load_in_8bit=True)
        dtype = getattr(torch, self.dtype)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)

    def _new(self, vocab_size: int, special: dict[str, int | None]) -> PreTrainedModel:
        given = dict(self.config)
        kind = given.pop("model_type", None)
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            near = difflib.get_close_matches(str(kind), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, 1)
            raise ValueError(
                f"language_model.config.model_type is {kind!r}; name a causal language model of transformers: "
                + (f"did you mean {near[0]!r}?" if near else "llama, qwen3, gemma2, bloom ..")
            )
        try:
            _check_keys(given, AutoConfig.for_model(kind))
            ids = {f"{name}_token_id": token for name, token in special.items()}
            config = AutoConfig.for_model(kind, **({"vocab_size": vocab_size} | ids | given))
            # The usual 0.02 is made for widths of some thousand. In a narrow model it makes states so small that the
            # loss stands still for a thousand steps and more; 1/sqrt(width) gives logits of size 1 at any width.
            if "initializer_range" not in given and hasattr(config, "initializer_range"):
                config.initializer_range = config.hidden_size**-0.5
            _check_writes(config, kind)
            return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, self.dtype))
        except _Unfit:
            raise
        except Exception as error:  # a geometry that does not fit fails wherever transformers meets it first
            raise ValueError(f"language_model.config: no {kind} comes out of it ({first_line(error)})") from None


class _Unfit(ValueError):
    """Told in our own words already."""


def _check_writes(config: PretrainedConfig, name: str) -> None:
    """Errors: ValueError for a model that does not write a text from left to right."""
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or masked or config.is_encoder_decoder:
        raise _Unfit(f"{name} is of type {config.model_type}, which is no causal language model; choose one that is")


def _check_keys(given: dict[str, Any], default: PretrainedConfig) -> None:
    """Errors: ValueError for a key that transformers would take and forget."""
    known = {*default.to_dict(), *default.attribute_map, "rope_theta"}
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise _Unfit(
                f"language_model.config: {default.model_type} has no {key!r}"
                + (f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(sorted(known))}")
            )


class LanguageModel(nn.Module):
    """A causal language model. What enters are embeddings, so that the states of a picture may stand among them.

    `model`: transformers' own, perhaps with peft's adapters in it. `stop`: ids that end an answer. Its forward is left
    alone, with whatever scaling and capping of logits its architecture has. Padding may stand on either side.
    """

    def __init__(self, model: PreTrainedModel, pad: int, stop: Sequence[int]) -> None:
        super().__init__()
        self.model, self.pad, self.stop = model, pad, tuple(stop)
        self._recomputed: list[nn.Module] = []  # layers that keep no activations
        self._takes_positions = "position_ids" in inspect.signature(self.plain.forward).parameters

    @property
    def plain(self) -> PreTrainedModel:
        """The transformers model; adapters, where there are any, act within its layers."""
        return getattr(self.model, "base_model", self.model).model if self.adapted else self.model

    @property
    def adapted(self) -> bool:
        """Whether peft's adapters are in it."""
        return hasattr(self.model, "peft_config")

    @property
    def width(self) -> int:
        return self.plain.config.get_text_config().hidden_size

    @property
    def depth(self) -> int:
        return self.plain.config.get_text_config().num_hidden_layers

    @property
    def context_length(self) -> int:
        """The most tokens that fit; no bound where positions have none, as with ALiBi."""
        config = self.plain.config.get_text_config()
        names = ("max_position_embeddings", "max_seq_len", "n_positions")
        return next((length for name in names if (length := getattr(config, name, None))), sys.maxsize)

    def check_length(self, prompt: int, answer: int = 0) -> None:
        """Errors: ValueError where so many tokens of prompt and answer do not fit into the context."""
        if prompt + answer > self.context_length:
            and_answer = f" and an answer of up to {answer}" if answer else ""
            raise ValueError(
                f"a prompt of {prompt} tokens{and_answer}, but the language model holds {self.context_length}; shorten "
                "the prompt, give a picture fewer states or lower max_tokens"
            )

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings (B, L, D) of ids (B, L); at places of pictures (id -1) stands any token's."""
        return self.plain.get_input_embeddings()(ids.clamp(min=0))

    def loss(self, embeds: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over the answer tokens, those of `labels` (B, L) that are not -100.

        As transformers computes it, but logits exist for answer tokens alone. Frozen weights get no gradient, `embeds`
        does. Errors: ValueError for more tokens than the context holds.
        """
        logits, right, _ = self._answer_logits(embeds, mask, labels)
        return F.cross_entropy(logits.float(), right)

    def log_likelihood(self, embeds: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Log probability (B,) float32 of each answer: the sum over its tokens. Errors: as of `loss`."""
        logits, right, owner = self._answer_logits(embeds, mask, labels)
        each = -F.cross_entropy(logits.float(), right, reduction="none")  # (N,)
        return each.new_zeros(len(labels)).index_add(0, owner, each)

    def _answer_logits(self, embeds: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N, V) of the answer tokens of all rows, which tokens they are (N,), and whose (N,)."""
        self.check_length(labels.shape[1])
        following = F.pad(labels[:, 1:], (0, 1), value=IGNORED)  # (B, L): a token is said by the state before it
        answered = following != IGNORED  # (B, L)
        with self._training_layers():
            logits = self.plain(
                inputs_embeds=embeds, use_cache=False, logits_to_keep=answered, **self.places(mask)
            ).logits  # (N, V)
        assert logits.dim() == 2, f"{type(self.plain).__name__} does not heed logits_to_keep"
        return logits, following[answered], answered.nonzero()[:, 0]

    def states(self, input_ids: Tensor, mask: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """States (B, L, D) of each of `layers`: 0 are the embeddings, `depth` the last layer's, normed as it has them.

        Errors: ValueError for a layer that is not there and for texts longer than the context.
        """
        return self.states_of(self.embed(input_ids), mask, layers)

    def states_of(self, embeds: Tensor, mask: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The same of embeddings (B, L, D)."""
        self.check_layers(layers)
        self.check_length(embeds.shape[1])
        decoder = self.plain.base_model
        with self._training_layers():
            found = decoder(inputs_embeds=embeds, use_cache=False, output_hidden_states=True, **self.places(mask))
        return [found.hidden_states[layer] for layer in layers]

    def check_layers(self, layers: Sequence[int]) -> None:
        """Errors: ValueError for a layer that is not there."""
        for layer in layers:
            if not 0 <= layer <= self.depth:
                raise ValueError(
                    f"layer {layer}: this language model has 0 (its embeddings) to {self.depth} (its last)"
                )

    def places(self, mask: Tensor) -> dict[str, Tensor]:
        """Mask and positions: the first token of a text is its first, on whichever side the padding is."""
        places = {"attention_mask": mask.long()}
        if self._takes_positions:
            places["position_ids"] = (places["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return places

    @torch.no_grad()
    def generate(
        self, embeds: Tensor, mask: Tensor, options: GenerationOptions, streamer: BaseStreamer | None = None
    ) -> list[list[int]]:
        """Ids of the answers to prompts (B, L, D) padded on the left; what ends an answer is not among them.

        Whatever generation settings the model's folder holds are replaced by `options`, but for what ends an answer.
        Errors: ValueError for a prompt that, with its answer, is longer than the context, and for NaN.
        """
        self.check_length(embeds.shape[1], options.max_tokens)
        if not embeds.isfinite().all():
            raise ValueError(
                "what enters the language model has NaN or infinity: the weights of the bridge or of what it reads are "
                "damaged; export or train them again"
            )
        config = generation_config(options, self.pad, self.stop)
        devices = [embeds.device] if embeds.device.type == "cuda" else []
        with torch.random.fork_rng(devices), _without_own_settings(self.plain), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Passing .* with `inputs_embeds`")  # prompts are not repeated from: fine
            torch.manual_seed(options.seed)
            written = self.plain.generate(
                inputs_embeds=embeds, attention_mask=mask.long(), generation_config=config, streamer=streamer
            )  # (B, T)
        return [_until(row, {self.pad, *self.stop}) for row in written.tolist()]

    def recompute_activations(self) -> None:
        """Keep no activations within layers, and compute them again on the way back: less memory, a third slower.

        Holds for a frozen model too, whose gradients flow on to what stands before it.
        """
        self.plain.activation_checkpointing_enable({"use_reentrant": False})
        self._recomputed = [part for part in self.modules() if isinstance(part, GradientCheckpointingLayer)]

    @contextmanager
    def _training_layers(self) -> Iterator[None]:
        """A layer recomputes only where its own flag says that it trains; what drops out in it has flags of its own."""
        before = [layer.training for layer in self._recomputed]
        for layer in self._recomputed:
            layer.training = True
        try:
            yield
        finally:
            for layer, training in zip(self._recomputed, before, strict=True):
                layer.training = training

    def fingerprint(self) -> str:
        """Tells whether a bridge was made for this model: of its geometry, embeddings, norms and layers.

        The same with adapters; quantised ones agree with it, but tell nothing of the layers.
        """
        config = self.plain.config.get_text_config()
        names = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        geometry = repr([getattr(config, name, None) for name in names])
        own = [value for name, value in self.plain.named_parameters() if "lora_" not in name]
        quantised = getattr(self.plain.config, "quantization_config", None) is not None
        return fingerprint(geometry, own, [self.plain.get_input_embeddings().weight], quantised)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of what adapters were made for: a checkpoint holds them alone."""
        return {"language_model": self.fingerprint()} if self.adapted else {}

    def save_pretrained(self, folder: str | Path) -> None:
        """A plain transformers folder; adapters are merged into the layers of what is written, not into ours."""
        if self.adapted:
            deepcopy(self.model).merge_and_unload().save_pretrained(str(folder))
        else:
            self.plain.save_pretrained(str(folder))


@contextmanager
def _without_own_settings(model: PreTrainedModel) -> Iterator[None]:
    """transformers fills what a call leaves open from the model's own settings, suppressed tokens among them."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class LayerEncoder(nn.Module):
    """One layer of a language model as a text encoder: what the contrastive objective needs of a model.

    `logit_scale`: log of the inverse temperature, to be learned along, perhaps with other layers.
    """

    def __init__(self, language_model: LanguageModel, layer: int, logit_scale: Tensor) -> None:
        super().__init__()
        language_model.check_layers([layer])
        self.language_model, self.layer, self.logit_scale = language_model, layer, logit_scale

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> View:
        """States of the layer and their mean, as `layer_view` has them."""
        (states,) = self.language_model.states(input_ids, attention_mask, [self.layer])
        return layer_view(states, attention_mask)

    def scale(self) -> Tensor:
        """The inverse temperature, at most 100 lest a batch that is told apart already makes it grow without end."""
        return self.logit_scale.exp().clamp(max=100.0)


def layer_view(states: Tensor, mask: Tensor) -> View:
    """States (B, L, D) of a layer, and as their embedding (B, D) the mean over the text's tokens, of unit norm."""
    weight = mask.unsqueeze(-1).float()  # (B, L, 1)
    mean = (states.float() * weight).sum(1) / weight.sum(1).clamp(min=1.0)
    return View(states, mask, F.normalize(mean, dim=-1))


def _until(ids: list[int], ends: set[int]) -> list[int]:
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]
