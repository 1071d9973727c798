"""Text-to-video pipeline of an exported MotionAura model.  Requires torch and safetensors, and transformers for a published T5.

from pipeline_motionaura import MotionAuraPipeline, export_to_video

pipe = MotionAuraPipeline.from_pretrained("FOLDER")
video = pipe("a red circle moves up", seed=0).frames[0]
export_to_video(video, "out.mp4", fps=8)
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from motionaura_jax.exporters.pytorch.modeling_mbq_vae import MBQVAE, Size
from motionaura_jax.exporters.pytorch.modeling_spectral_transformer import SpectralTransformer
from motionaura_jax.exporters.pytorch.modeling_text_encoder import TextEncoder, WordTokenizer
from motionaura_jax.exporters.pytorch.modeling_utils import model_folder
from motionaura_jax.exporters.pytorch.scheduling_absorbing import AbsorbingScheduler, Denoise, Noise, SeededNoise, guide


class Tokenizer(Protocol):
    """Tokenizer from texts to ids `(b, l)`, filled up with `pad`."""

    pad: int

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the ids of `texts`."""


class MotionAuraOutput(NamedTuple):
    """Generated videos: `frames` uint8 `(b, frames, height, width, 3)`, torch or NumPy, and their `tokens` `(b, t, h, w)`."""

    frames: Any
    tokens: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defaults:
    """Clip size, frame rate and window length that the model was trained on."""

    num_frames: int
    height: int
    width: int
    fps: float
    window_frames: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Source folder of the transformer, and the hash of its weights, which adapters are checked against."""

    folder: Path
    weights_hash: str


class MotionAuraPipeline:
    """Text-to-video pipeline: tokenizer, text encoder, transformer, scheduler and video tokenizer."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        text_encoder: torch.nn.Module,
        transformer: SpectralTransformer,
        vae: MBQVAE,
        scheduler: AbsorbingScheduler,
        defaults: Defaults,
        origin: Origin,
    ):
        self.tokenizer, self.text_encoder, self.transformer = tokenizer, text_encoder, transformer
        self.vae, self.scheduler, self.defaults, self.origin = vae, scheduler, defaults, origin

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        revision: str | None = None,
        torch_dtype: torch.dtype = torch.float32,
        fold: bool = True,
        text_encoder: str | Path | None = None,
    ) -> Self:
        """Load an exported folder on the CPU; move the networks with `to`.

        Args:
          folder, revision: a local folder, or a Hugging Face hub id with a commit or tag.
          torch_dtype: dtype of weights and activations.
          fold: merge transforms along the embedding into the attention kernels, which computes the same outputs faster.
          text_encoder: local folder of the published T5 named in `model_index.json`, or its Hugging Face hub id with a
            revision, "ID@REVISION", to fetch it; None takes it from the folder or from the local cache of the hub.
        """
        folder = model_folder(folder, revision)
        transformer = SpectralTransformer.from_pretrained(folder / "transformer", torch_dtype=torch_dtype)
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        tokenizer, encoder = _open_text(folder, index, text_encoder, torch_dtype)
        return cls(
            tokenizer=tokenizer,
            text_encoder=encoder,
            transformer=transformer.fold() if fold else transformer,
            vae=MBQVAE.from_pretrained(folder / "vae", torch_dtype=torch_dtype),
            scheduler=AbsorbingScheduler.from_pretrained(folder / "scheduler"),
            defaults=Defaults(**{field.name: index[field.name] for field in dataclasses.fields(Defaults)}),
            origin=Origin(folder=folder / "transformer", weights_hash=index.get("weights_hash", "")),
        )

    def load_lora_weights(self, folder: str | Path) -> None:
        """Add an adapter to the transformer; `folder` comes from `motionaura export --format=adapter`.

        Raises:
          FileNotFoundError: a file is missing.
          ValueError: the adapter was trained on other weights, or the model was exported with adapters.
          RuntimeError: tensors are missing, unexpected or of the wrong shape.
        """
        old = self.transformer  # if folded, it no longer has the kernels to adapt, so reload it
        place = self.origin
        network = SpectralTransformer.adapted(place.folder, folder, place.weights_hash, old.dtype).to(old.device)
        self.transformer = network.fold() if old.is_folded else network

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the networks; takes the arguments of `torch.nn.Module.to`."""
        for network in (self.text_encoder, self.transformer, self.vae):
            network.to(*args, **kwargs)
        return self

    @property
    def device(self) -> torch.device:
        """Return the device of the networks."""
        return self.transformer.device

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str = "",
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        fps: float | None = None,
        window_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_videos_per_prompt: int = 1,
        seed: int = 0,
        generator: Sequence[torch.Generator] | None = None,
        noise: Noise | None = None,
        output_type: Literal["pt", "np"] = "np",
    ) -> MotionAuraOutput:
        """Generate videos.  Arguments that are None default to the training settings or to those of `scheduler`.

        Args:
          prompt: one prompt or several.
          negative_prompt: text to guide away from; "" stands for the learned null text.
          num_frames, height, width, fps: size and frame rate of the video.
          window_frames: frames sampled at once; longer videos continue in windows that overlap by half.
          guidance_scale: 1 disables guidance.
          seed: video i uses `seed` + i.
          generator: one CPU generator per video, in place of `seed`.
          noise: source of all random numbers, in place of `seed` and `generator`.
        """
        prompts = [
            one for one in ([prompt] if isinstance(prompt, str) else prompt) for _ in range(num_videos_per_prompt)
        ]
        size = self._size(num_frames, height, width)
        scale = self.scheduler.guidance_scale if guidance_scale is None else guidance_scale
        noise = noise or SeededNoise(generator or range(seed, seed + len(prompts)))
        denoise = self._denoiser(prompts, negative_prompt, fps or self.defaults.fps, scale)
        tokens = self._draw(
            denoise, noise, len(prompts), size, window_frames or self.defaults.window_frames, num_inference_steps
        )
        videos = torch.cat([self._decode(one[None], size) for one in tokens])
        return MotionAuraOutput(videos if output_type == "pt" else videos.numpy(), tokens.cpu())

    def encode_prompt(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return text features `(b, l, d)` and a mask `(b, l)`, True at text."""
        ids = self.tokenizer(prompts).to(self.device)
        mask = ids != self.tokenizer.pad
        return self.text_encoder(ids, mask), mask

    def _size(self, num_frames: int | None, height: int | None, width: int | None) -> Size:
        given = {"num_frames": num_frames, "height": height, "width": width}
        size = tuple(getattr(self.defaults, name) if value is None else value for name, value in given.items())
        if min(size) < 1:
            raise ValueError(f"(frames, height, width) = {size}: a video with no pixels; all must be at least 1")
        return size  # type: ignore[return-value]

    def _denoiser(self, prompts: Sequence[str], negative: str, fps: float, scale: float) -> Denoise:
        """Return the denoiser; with guidance, one transformer call computes both the conditional and unconditional logits."""
        rates = torch.full((len(prompts),), fps, device=self.device)

        def alone(x: Tensor, m: Tensor, _: float) -> Tensor:
            return self.transformer(x, m, rates, memory=memory)

        if scale == 1 or not self.scheduler.always_guides:
            memory = self.transformer.encode_text(*self.encode_prompt(prompts))
        if scale == 1:
            return alone
        memory_of_both = self.transformer.encode_text(*self.encode_prompt([*prompts, *[negative] * len(prompts)]))

        def denoise(x: Tensor, m: Tensor, progress: float) -> Tensor:
            if not self.scheduler.guides(progress):
                return alone(x, m, progress)
            both = self.transformer(
                torch.cat([x, x]), torch.cat([m, m]), torch.cat([rates, rates]), memory=memory_of_both
            )
            return guide(both[: len(x)], both[len(x) :], scale, progress, self.scheduler.guidance_ramp)

        return denoise

    def _draw(self, denoise: Denoise, noise: Noise, count: int, size: Size, window: int, steps: int | None) -> Tensor:
        """Sample window by window; each window keeps the tokens that the previous one has sampled."""
        grid = self.vae.config.latent_shape(*size)
        length = self.vae.config.latent_shape(min(window, size[0]), *size[1:])[0]
        tokens = self.scheduler.prior((count, *grid)).to(self.device)
        for start in window_starts(grid[0], length):
            part = tokens[:, start : start + length]
            steps_of_window = steps or self.scheduler.num_inference_steps
            tokens[:, start : start + length] = self.scheduler.sample(denoise, part, noise, steps=steps_of_window)
        return tokens

    def _decode(self, tokens: Tensor, size: Size) -> Tensor:
        """Decode tokens to uint8 frames `(1, t, h, w, 3)` on the CPU."""
        video = self.vae.decode_tokens(tokens, size).movedim(1, -1)
        return ((video + 1.0) * 127.5 + 0.5).to(torch.uint8).cpu()


def _open_text(
    folder: Path, index: dict[str, Any], other: str | Path | None, dtype: torch.dtype
) -> tuple[Tokenizer, torch.nn.Module]:
    """Load the jointly trained text encoder, or the published one from `other`, the folder or the hub."""
    if index["text_encoder"][1] == "TextEncoder":
        if other is not None:
            raise ValueError("this model comes with its own text encoder; leave out text_encoder")
        encoder = TextEncoder.from_pretrained(folder / "text_encoder", torch_dtype=dtype)
        return WordTokenizer.from_pretrained(folder / "tokenizer"), encoder
    from motionaura_jax.exporters.pytorch.modeling_published_text import PublishedT5, PublishedTokenizer

    place, _, revision = index.get("text_encoder_id", "").partition("@")
    if other is not None:
        place, _, revision = (str(other), "", "") if Path(other).is_dir() else str(other).partition("@")
    elif not place:
        place, revision = str(folder / "text_encoder"), ""
    try:
        # An id that only the folder names is not fetched: the folder may be untrusted.
        download = other is not None
        published = PublishedT5.from_pretrained(place, revision=revision or None, torch_dtype=dtype, download=download)
    except OSError as error:
        if download:
            raise
        raise OSError(
            f"{folder}: its text encoder {place} is not in the local cache; to fetch it, give "
            f"text_encoder={index.get('text_encoder_id', place)!r}"
        ) from error
    return PublishedTokenizer.from_pretrained(folder / "tokenizer"), published


def window_starts(total: int, length: int) -> list[int]:
    """Return the first latent frame of each window; windows advance by half their length and the last ends with the video."""
    step = max(1, length - length // 2)
    return [*range(0, max(0, total - length), step), max(0, total - length)]


def export_to_video(frames: Any, path: str | Path, fps: float = 8.0) -> None:
    """Write uint8 frames `(t, h, w, 3)` as H.264; odd sizes are padded to even by repeating the edge.

    Raises:
      ImportError: PyAV is not installed (`pip install av`).
    """
    from motionaura_jax.data.mp4 import encode_h264

    encode_h264(path, torch.as_tensor(frames).numpy(), fps)
