"""Text to video with an exported MotionAura model: plain PyTorch and safetensors, and transformers for a published T5.

from pipeline_motionaura import MotionAuraPipeline, export_to_video

pipe = MotionAuraPipeline.from_pretrained("FOLDER")
video = pipe("a large red circle moves up", seed=0).frames[0]
export_to_video(video, "out.mp4", fps=8)
"""

import dataclasses
import json
from collections.abc import Sequence
from fractions import Fraction
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
    """Texts to ids `(b, l)`, with `pad` where there is no text."""

    pad: int

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids of texts."""


class MotionAuraOutput(NamedTuple):
    """`frames` uint8 `(b, frames, height, width, 3)`, a torch tensor or a NumPy array; `tokens` `(b, t, h, w)`."""

    frames: Any
    tokens: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defaults:
    """What the model was trained on: clip size, frame rate, and how many frames it sees at once."""

    num_frames: int
    height: int
    width: int
    fps: float
    window_frames: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the transformer was read, and the hash that adapters know its weights by."""

    folder: Path
    weights_hash: str


class MotionAuraPipeline:
    """Tokenizer, text encoder, transformer, sampler and video tokenizer of one model."""

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
        """Opens an exported folder on the CPU; `to` moves the networks.

        Args:
          folder, revision: a folder here, or an id on the Hugging Face hub with the commit or tag to take.
          torch_dtype: of weights and activations.
          fold: merges transforms along the embedding into kernels: the same function with less work.
          text_encoder: folder of the published T5 that `model_index.json` names, where it is not to be fetched.
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
        """Puts the adapter in `folder`, from `motionaura export --format=adapter`, on the transformer.

        Raises:
          FileNotFoundError: a file is missing.
          ValueError: the adapter was trained on other weights, or the model was exported with adapters.
          RuntimeError: tensors that are missing, superfluous or of another shape.
        """
        old = self.transformer  # which may be folded, and then has no kernels left to put it on
        place = self.origin
        network = SpectralTransformer.adapted(place.folder, folder, place.weights_hash, old.dtype).to(old.device)
        self.transformer = network.fold() if old.is_folded else network

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves the networks, as `torch.nn.Module.to`."""
        for network in (self.text_encoder, self.transformer, self.vae):
            network.to(*args, **kwargs)
        return self

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
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
        """Draws videos.  What is None is as in training, or as `scheduler` says.

        Args:
          prompt: one text, or several.
          negative_prompt: what to guide away from; empty is the learned null text.
          num_frames, height, width, fps: of the video.
          window_frames: frames drawn at once; longer videos are continued, half of each window being known already.
          guidance_scale: 1 is no guidance.
          seed: video i draws from `seed` + i.
          generator: one CPU generator for each video, in place of `seed`.
          noise: source of all random numbers, in place of both.
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
        """Features `(b, l, d)` of texts, and a mask `(b, l)`, True where there is text."""
        ids = self.tokenizer(prompts).to(self.device)
        mask = ids != self.tokenizer.pad
        return self.text_encoder(ids, mask), mask

    def _size(self, num_frames: int | None, height: int | None, width: int | None) -> Size:
        given = {"num_frames": num_frames, "height": height, "width": width}
        size = tuple(getattr(self.defaults, name) if value is None else value for name, value in given.items())
        if min(size) < 1:
            raise ValueError(f"a video of {size} (frames, height, width) has no pixels")
        return size  # type: ignore[return-value]

    def _denoiser(self, prompts: Sequence[str], negative: str, fps: float, scale: float) -> Denoise:
        """Both halves of the guidance in one call of the transformer; without guidance the conditional one alone."""
        texts = [*prompts, *[negative] * len(prompts)] if scale != 1 else list(prompts)
        memory = self.transformer.encode_text(*self.encode_prompt(texts))
        rates = torch.full((len(texts),), fps, device=self.device)
        if scale == 1:
            return lambda x, m, _: self.transformer(x, m, rates, memory=memory)

        def denoise(x: Tensor, m: Tensor, progress: float) -> Tensor:
            both = self.transformer(torch.cat([x, x]), torch.cat([m, m]), rates, memory=memory)
            return guide(both[: len(x)], both[len(x) :], scale, progress, self.scheduler.guidance_ramp)

        return denoise

    def _draw(self, denoise: Denoise, noise: Noise, count: int, size: Size, window: int, steps: int | None) -> Tensor:
        """Draws window after window; tokens of the window before are known to the next one."""
        grid = self.vae.config.latent_shape(*size)
        length = self.vae.config.latent_shape(min(window, size[0]), *size[1:])[0]
        tokens = self.scheduler.prior((count, *grid)).to(self.device)
        for start in window_starts(grid[0], length):
            part = tokens[:, start : start + length]
            steps_of_window = steps or self.scheduler.num_inference_steps
            tokens[:, start : start + length] = self.scheduler.sample(denoise, part, noise, steps=steps_of_window)
        return tokens

    def _decode(self, tokens: Tensor, size: Size) -> Tensor:
        """Frames uint8 `(1, t, h, w, 3)` on the CPU."""
        video = self.vae.decode_tokens(tokens, size).movedim(1, -1)
        return ((video + 1.0) * 127.5 + 0.5).to(torch.uint8).cpu()


def _open_text(
    folder: Path, index: dict[str, Any], other: str | Path | None, dtype: torch.dtype
) -> tuple[Tokenizer, torch.nn.Module]:
    """Opens the text encoder that trained along, or the published one, in the folder, in `other`, or on the hub."""
    if index["text_encoder"][1] == "TextEncoder":
        if other is not None:
            raise ValueError("this model has a text encoder of its own; leave text_encoder out")
        encoder = TextEncoder.from_pretrained(folder / "text_encoder", torch_dtype=dtype)
        return WordTokenizer.from_pretrained(folder / "tokenizer"), encoder
    from motionaura_jax.exporters.pytorch.modeling_published_text import PublishedT5, PublishedTokenizer

    place, _, revision = index.get("text_encoder_id", "").partition("@")
    if other is not None or not place:
        place, revision = str(other or folder / "text_encoder"), ""
    published = PublishedT5.from_pretrained(place, revision=revision or None, torch_dtype=dtype)
    return PublishedTokenizer.from_pretrained(folder / "tokenizer"), published


def window_starts(total: int, length: int) -> list[int]:
    """First latent frame of each window: steps of half a window, the last one flush with the end."""
    step = max(1, length - length // 2)
    return [*range(0, max(0, total - length), step), max(0, total - length)]


def export_to_video(frames: Any, path: str | Path, fps: float = 8.0) -> None:
    """Writes frames uint8 `(t, h, w, 3)` as H.264 in yuv420p, which has no odd sizes: a last odd row or column is dropped.

    Raises:
      ImportError: PyAV is not installed (`pip install av`).
    """
    import av

    frames = torch.as_tensor(frames).numpy()
    height, width = (size // 2 * 2 for size in frames.shape[1:3])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames[:, :height, :width]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.copy(), format="rgb24")))
        container.mux(stream.encode())
