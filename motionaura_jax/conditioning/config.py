"""Settings of conditioners, free of jax imports."""

from dataclasses import dataclass, field

from motionaura_jax.core.limits import Checked, Codes, Length, Place, Share
from motionaura_jax.models.encoders.config import TextEncoderConfig


@dataclass(frozen=True, kw_only=True)
class TextConfig(Checked):
    """The text encoder and its words.

    Attributes:
      encoder: one that trains with the denoiser, used if neither `tower` nor `cache` names a published one.
      tower: folder or hub id of a published T5, which stays frozen; it decides `model.text_dim`.
      cache: folder that `motionaura encode --text` wrote with it, so that training needs no encoder.
      tower_hash: identifies its features; the system fills it in, and from then on refuses another encoder.
      limit: ids of a text at most, its end mark included; `model.text_len` is the length that they are padded to.
      vocabulary: words by falling frequency; if empty, they are counted from the captions of `data.manifest` at the first
        start.  The saved config holds the result, so that inference needs nothing else.
      max_words: words that are counted at most; rarer ones become <unk>.
      max_missing: share of clips without a caption above which training stops; below it they train the null text.
    """

    encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    vocabulary: tuple[str, ...] = ()
    tower: Place = ""
    cache: Place = ""
    tower_hash: str = ""
    limit: Length = 180
    max_words: Codes = 8192
    max_missing: Share = 0.05

    @property
    def is_frozen(self) -> bool:
        """Tell whether a published encoder reads the texts."""
        return bool(self.tower or self.cache or self.tower_hash)
