"""What plain diffusers needs to paint as a model of ours does: a pipeline's folder, and the states of its prompts.

Shapes: P prompts, N states of each, D their width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor

from cclm.models.names import quiet
from cclm.pivot.diffusers_parts import diffusers
from cclm.pivot.sampling import SamplingOptions, TextStates, sampler
from cclm.pivot.spaces import LatentSpace
from cclm.storage import check_replaceable, whole_file, whole_folder

if TYPE_CHECKING:
    from cclm.pivot.text_to_image import TextToImage

FILES = ("README.md", "model_index.json", "unet/*", "transformer/*", "vae/*", "scheduler/*")
_OURS = "it paints from the states that `cclm` makes of prompts in any language."  # a README says so, and no other
_MOST = 1024  # states of a prompt in a file for pipelines that know no mask


def export_pipeline(model: TextToImage, folder: str | Path) -> None:
    """Write the denoiser, its autoencoder and its scheduler as a folder of diffusers, with a README that tells how to
    use it: Stable Diffusion's layout for U-Nets, PixArt's or Sana's for transformers. Texts enter as states, which
    `write_states` writes. Errors: ValueError for a folder that holds anything but a former export, or a part of the
    model.
    """
    _check_folder(model, Path(folder))
    denoiser = model.denoiser
    vae = model.space.vae if isinstance(model.space, LatentSpace) else None
    parts = {denoiser.part: denoiser.model, "vae": vae, "scheduler": sampler(model.noise, None)}
    if denoiser.pipeline == "StableDiffusionPipeline":
        denoiser.model.register_to_config(sample_size=model.side)  # the size it paints where none is asked for
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    with quiet():
        pipeline = getattr(diffusers(), denoiser.pipeline)(text_encoder=None, tokenizer=None, **parts)
    with whole_folder(folder) as partial:
        with quiet():
            pipeline.save_pretrained(partial, safe_serialization=True)
        (partial / "README.md").write_text(_readme(model, Path(folder).name), encoding="utf-8")


def _check_folder(model: TextToImage, folder: Path) -> None:
    made_of = model.settings
    for part in (made_of.text_encoder.pretrained, made_of.denoiser.pretrained, made_of.space and made_of.space.vae):
        if part and Path(part).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"output {folder} is where the model has {part} from; choose a new or empty folder")
    check_replaceable(folder, FILES)
    readme = folder / "README.md"
    if folder.is_dir() and any(folder.iterdir()) and not (readme.is_file() and _OURS in readme.read_text("utf-8")):
        raise ValueError(f"output {folder} holds a pipeline that is no export of ours; choose a new or empty folder")


def write_states(model: TextToImage, prompts: Sequence[str], negative: str, file: str | Path) -> None:
    """Write, as safetensors, what a pipeline takes in place of prompts: `pipeline(**load_file(file))`.

    Errors: ValueError for prompts that are too long, and for more than a pipeline without masks can tell apart.
    """
    texts, without = model.states(prompts), model.states([negative]).repeated(len(prompts))
    if model.denoiser.pipeline == "StableDiffusionPipeline":
        states = _repeated([*_rows(texts), *_rows(without)])
        tensors = dict(zip(("prompt_embeds", "negative_prompt_embeds"), states.chunk(2), strict=True))
    else:
        both = texts.above(without)
        named = {"prompt_embeds": both.states, "prompt_attention_mask": both.mask.long()}
        halves = {name: value.chunk(2) for name, value in named.items()}
        tensors = {name: first for name, (first, _) in halves.items()}
        tensors |= {f"negative_{name}": second for name, (_, second) in halves.items()}
    with whole_file(file) as partial:
        safetensors.torch.save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, partial)


def _rows(texts: TextStates) -> list[Tensor]:
    return [states[mask] for states, mask in zip(texts.states, texts.mask, strict=True)]


def _repeated(rows: list[Tensor]) -> Tensor:
    """States (N, D) of several lengths -> (P, M, D) of one, without a mask and without padding.

    A pipeline of Stable Diffusion knows no mask. But attention to states of which each is there equally often is
    attention to each once, so all are repeated up to a common multiple of their lengths. A bridge that makes equally
    many states of every text needs none of it.
    """
    length = math.lcm(*(len(row) for row in rows))
    if length > _MOST:
        lengths = ", ".join(str(count) for count in sorted({len(row) for row in rows}))
        raise ValueError(
            f"prompts of {lengths} states have no common multiple up to {_MOST}, and a pipeline of Stable Diffusion "
            "takes no mask; write each prompt to a file of its own, or train a bridge of kind resampler"
        )
    return torch.stack([row.repeat(length // len(row), 1) for row in rows])


def _readme(model: TextToImage, name: str) -> str:
    denoiser, factor = model.denoiser, model.space.factor
    latent = isinstance(model.space, LatentSpace)
    options = SamplingOptions()
    loading = [f'"{name}"']
    unet = denoiser.pipeline == "StableDiffusionPipeline"
    if unet:  # the others know that these may be missing
        loading += ["text_encoder=None", "tokenizer=None"]
    if not latent:
        loading.append("vae=None")
    cell = factor if latent else 8 if denoiser.pipeline != "SanaPipeline" else 32
    size = f"height={model.side * cell}, width={model.side * cell}"
    size += "" if unet else ", use_resolution_binning=False, negative_prompt=None"
    last = 'pictures[0].save("picture.png")'
    if not latent:
        pixels = f"torch.pixel_shuffle(pictures, {model.space.patch})"
        if (scale := model.space.shrink) > 1:
            pixels = f'torch.nn.functional.interpolate({pixels}, scale_factor={scale}, mode="bicubic")'
        last = (
            "from torchvision.utils import save_image  # what is denoised are pixels: there is no autoencoder\n"
            f'save_image({pixels} / 2 + 0.5, "picture.png")'
        )
    form = "" if latent else ', output_type="latent"'
    return f"""# {name}

A pipeline of diffusers. It has no text encoder: {_OURS}

```
cclm generate MODEL --prompt "..." --states states.safetensors
```

```python
import torch
from diffusers import {denoiser.pipeline}
from safetensors.torch import load_file

pipeline = {denoiser.pipeline}.from_pretrained({", ".join(loading)})
states = load_file("states.safetensors")
pictures = pipeline(
    **states, {size}, num_inference_steps={options.steps}, guidance_scale={model.settings.guidance:g},
    generator=torch.Generator().manual_seed(0){form}
).images
{last}
```
"""
