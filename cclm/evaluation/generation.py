"""How good are generated pictures, and do they keep what they show when the prompt is translated?

Another model judges: its features tell how far generated pictures lie from the data's (FID, KID), its embeddings which
text a picture matches (CLIP-score, R-precision) and how alike the pictures of translated prompts are (consistency).
Nothing is reranked: every prompt has one picture. Beside each number about pairs stands the same one with mismatched
captions, as a model that heeds no prompt would have it.
Shapes: N prompts, F features, E embedding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as VF

from cclm.evaluation import generation_metrics as scores
from cclm.evaluation.embedder import Images, System, embeddings
from cclm.evaluation.metrics import resampled_means
from cclm.evaluation.painting import MISMATCHED, Prompts
from cclm.storage import whole_file

if TYPE_CHECKING:
    from rich.table import Table

    from cclm.evaluation.protocol import Met

PRECISIONS = (1, 5, 10)
HEADLINE = "R-precision@10"
PAIRED = ("CLIP-score", *(f"R-precision@{k}" for k in PRECISIONS), "consistency")  # what mismatched captions are for
BATCH = 64


class FeatureNetwork(Protocol):
    """What FID and KID compare pictures by: any network of torchmetrics' kind, or the image encoder of a model."""

    def __call__(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, F) float."""
        ...


@dataclass(frozen=True)
class EmbeddingFeatures:
    """A model's image embeddings as a feature network. They are scaled so that a feature's mean square is 1, as the
    kernel of KID supposes; of unit norm they would all look alike to it.
    """

    system: System

    def __call__(self, pictures: Tensor) -> Tensor:
        images = [VF.to_pil_image(picture) for picture in pictures]
        found = embeddings(self.system, self.system.dual.embed_images(images), len(images), "embed_images")  # type: ignore[union-attr]
        return found * found.shape[1] ** 0.5


@dataclass(frozen=True)
class JudgeOptions:
    """`gallery`: prompts that a picture must find its own among; more than those are split into parts of as many.
    `draws` of prompts give a bootstrap 95 % interval, 0 none.
    """

    gallery: int = 100
    draws: int = 1000
    seed: int = 0

    def parts(self, count: int) -> int:
        """How many galleries `count` prompts make. Errors: ValueError where they do not fill them."""
        if self.gallery < 2 or count < 2:
            raise ValueError(f"a gallery of {self.gallery} of {count} prompts; give 2 or more of both")
        if count > self.gallery and count % self.gallery:
            raise ValueError(f"{count} prompts do not fill galleries of {self.gallery}; give a multiple of it")
        return max(1, count // self.gallery)


@dataclass(frozen=True)
class GenerationReport:
    """`languages[language][metric]`; likewise `real` of the data's own pictures, for scale: a judge may know what is
    painted better than them, where they are of a style that it has not seen. FID depends on the number of pictures, and
    of few is high: compare within one report, or by KID.

    CLIP-score and R-precision read the reference language's texts, whatever the language of the prompt. `regimes`: how
    the model had met each language. A metric X of pairs has `X_mismatched`, and perhaps `X_interval`; `X_kept` is what
    a language keeps of the reference's height above mismatched captions.
    """

    languages: dict[str, dict[str, Any]]
    real: dict[str, Any]
    regimes: dict[str, str]
    protocol: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        described = {"regimes": self.regimes, "protocol": self.protocol}
        return {"languages": self.languages, "real": self.real, **described, **self.provenance}

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """A report written before. Errors: OSError where it is missing, ValueError where it is no such report."""
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
            own = [stored.pop(name) for name in ("languages", "real", "regimes", "protocol")]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no report of `cclm evaluate generation` ({error!r}); give another") from None
        return cls(*own, stored)

    def write(self, path: Path | str, sheet: Image.Image) -> None:
        """Write the JSON file and, beside it, the contact sheet under the same name as PNG."""
        path = Path(path)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        with whole_file(path) as partial, whole_file(path.with_suffix(".png")) as picture:  # both or none
            partial.write_text(text, encoding="utf-8")
            sheet.save(picture, "PNG")


def check_judge(judge: System) -> None:
    """Errors: ValueError for one that embeds no pictures and texts; to be called before anything is painted."""
    if judge.dual is None:
        raise ValueError(f"judge {judge.name} embeds no pictures and texts; give a dual encoder, or a model of ours")


def judge_pictures(
    prompts: Prompts,
    painted: Mapping[str, Sequence[Image.Image]],
    judge: System,
    features: FeatureNetwork,
    options: JudgeOptions,
    met: Met | None = None,
) -> GenerationReport:
    """The report on the pictures of every row of `prompts`, N each and of one size. `met`: what the painter learned
    from, as its folder tells; None leaves the regimes unsaid.

    The data's pictures are reduced or enlarged to that size first. Errors: ValueError for a judge without embeddings.
    """
    check_judge(judge)
    parts = options.parts(len(prompts))
    size = next(iter(painted.values()))[0].size
    real = [picture.resize(size, Image.Resampling.BICUBIC) for picture in prompts.pictures]
    texts = list(prompts.texts[prompts.reference])
    read = embeddings(judge, judge.dual.embed_texts(texts, prompts.reference), len(texts), "embed_texts")
    seen = {row: _embedded(judge, pictures) for row, pictures in {"real": real, **painted}.items()}
    real_features = _features(features, real)
    found: dict[str, dict[str, Any]] = {}
    for language in prompts.texts:
        generated = _features(features, painted[language])
        found[language] = {
            "FID": scores.frechet_distance(real_features, generated),
            "KID": scores.kernel_distance(real_features, generated, options.seed),
        }
        values = _text_values(seen[language], read, parts)
        if language != prompts.reference:
            values["consistency"] = _consistency(seen[language], seen[prompts.reference], seen[MISMATCHED])
        found[language] |= _summary(values, options)
    for language, own in found.items():
        own |= _kept(own, found[prompts.reference]) if language != prompts.reference else {}
    protocol = {
        "prompts": len(prompts),
        "gallery": len(prompts) // parts,
        "reference": prompts.reference,
        "picture": "{} x {}".format(*size),
        "reranked": False,
        "skipped": prompts.skipped,
    }
    regimes = {language: met.regime(language).name for language in found} if met else {}
    return GenerationReport(found, _summary(_text_values(seen["real"], read, parts), options), regimes, protocol)


def _embedded(judge: System, pictures: Images) -> Tensor:
    """(N, E)."""
    found = [
        embeddings(judge, judge.dual.embed_images(batch), len(batch), "embed_images")  # type: ignore[union-attr]
        for batch in _batches(pictures)
    ]
    return torch.cat(found)


def _features(network: FeatureNetwork, pictures: Images) -> Tensor:
    """(N, F)."""
    with torch.inference_mode():
        stacked = (torch.stack([VF.pil_to_tensor(picture) for picture in batch]) for batch in _batches(pictures))
        return torch.cat([network(pixels).float().cpu() for pixels in stacked])


def _batches(pictures: Images) -> Iterator[list[Image.Image]]:
    return (list(pictures[first : first + BATCH]) for first in range(0, len(pictures), BATCH))


Values = dict[str, tuple[Tensor, Tensor]]  # metric -> of each picture (N,), and the same with mismatched captions (N,)


def _text_values(pictures: Tensor, texts: Tensor, parts: int) -> Values:
    """What pairs of pictures and texts say, within galleries of equal size."""
    galleries = list(zip(pictures.chunk(parts), texts.chunk(parts), strict=True))
    pairs = {"CLIP-score": [scores.clip_scores(*one) for one in galleries]}
    pairs |= {f"R-precision@{k}": [100 * scores.hits(*one, k) for one in galleries] for k in PRECISIONS}
    return {
        name: (torch.cat([scores.matched(one) for one in own]), torch.cat([scores.mismatched(one) for one in own]))
        for name, own in pairs.items()
    }


def _consistency(pictures: Tensor, reference: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of pictures of equal noise: of one prompt in two languages, and of two prompts. All (N, E)."""
    pairs = ((pictures.double() * others.double()).sum(1) for others in (reference, moved))
    return next(pairs), next(pairs)


def _summary(values: Values, options: JudgeOptions) -> dict[str, Any]:
    found: dict[str, Any] = {}
    columns = torch.stack([own for own, _ in values.values()] + [torch.ones(len(next(iter(values.values()))[0]))], 1)
    if options.draws:
        generator = np.random.default_rng(options.seed)
        drawn = resampled_means(columns.double().numpy(), np.arange(len(columns)), options.draws, generator)
        low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    for place, (name, (own, others)) in enumerate(values.items()):
        found[name] = float(own.mean())
        if options.draws:
            found[f"{name}_interval"] = [float(low[place]), float(high[place])]
        found[f"{name}_mismatched"] = float(others.mean())
    return found


def _kept(own: dict[str, Any], reference: dict[str, Any]) -> dict[str, float | None]:
    """What a language keeps of the reference's height above mismatched captions; None where that has no height."""
    found: dict[str, float | None] = {}
    for name in PAIRED:
        if name in reference:
            height = reference[name] - reference[f"{name}_mismatched"]
            found[f"{name}_kept"] = (own[name] - own[f"{name}_mismatched"]) / height if height > 0 else None
    return found


def table(report: GenerationReport) -> Table:
    """A row a language, and one of the data's own pictures; within 80 columns."""
    from rich import box
    from rich.table import Table

    about = report.protocol
    view = Table(
        title=f"{about['prompts']:,} pictures of {about['picture']} a language, read in {about['reference']} among "
        f"{about['gallery']};\nin brackets: mismatched captions",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0),
    )
    for name in ("", "FID", "1000\nKID", "CLIP-score", "R-precision\n@10", "kept", "consistency", "regime"):
        view.add_column(name, "bold" if name.startswith("R-") else "", justify="right", no_wrap=True)
    rows = {**report.languages, "real": report.real}
    for language, own in rows.items():
        kept = own.get(f"{HEADLINE}_kept")
        view.add_row(
            language,
            f"{own['FID']:.1f}" if "FID" in own else "",
            f"{1000 * own['KID']:.1f}" if "KID" in own else "",
            _bracketed(own, "CLIP-score", 1),
            _bracketed(own, HEADLINE, 1),
            "" if kept is None else f"{kept:.2f}",
            _bracketed(own, "consistency", 2),
            report.regimes.get(language, ""),
        )
    return view


def _bracketed(own: dict[str, Any], name: str, digits: int) -> str:
    return f"{own[name]:.{digits}f} ({own[f'{name}_mismatched']:.{digits}f})" if name in own else ""
