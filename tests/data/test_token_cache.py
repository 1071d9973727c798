"""The token cache: right tokens, few calls, bounded memory."""

import numpy as np

from motionaura_jax.data.token_cache import TokenCache


class _Encoder:
    """Sums every frame; counts calls."""

    calls = 0

    def __call__(self, videos: np.ndarray) -> np.ndarray:
        self.calls += 1
        return videos.sum((-1, -2, -3), dtype=np.float32).astype(np.int32)[..., None, None]


def _clips(*values: float) -> np.ndarray:
    return np.stack([np.full((2, 4, 4, 3), value, np.float32) for value in values])


def test_known_clips_are_not_encoded_again_in_any_order() -> None:
    encoder = _Encoder()
    cache = TokenCache(encoder, limit=8)
    first = cache(_clips(1, 2))
    cache(_clips(3, 4))
    again = cache(_clips(4, 1))
    assert encoder.calls == 2
    np.testing.assert_array_equal(again[1], first[0])
    np.testing.assert_array_equal(again, _Encoder()(_clips(4, 1)))


def test_the_oldest_clip_is_forgotten_first() -> None:
    encoder = _Encoder()
    cache = TokenCache(encoder, limit=2)
    cache(_clips(1))
    cache(_clips(2))
    cache(_clips(1))
    cache(_clips(3))
    assert encoder.calls == 3
    cache(_clips(1))
    assert encoder.calls == 3
    cache(_clips(2))
    assert encoder.calls == 4


def test_the_same_bytes_in_another_shape_are_another_clip() -> None:
    encoder = _Encoder()
    cache = TokenCache(encoder, limit=4)
    cache(np.zeros((1, 2, 4, 4, 3), np.float32))
    assert cache(np.zeros((1, 4, 2, 4, 3), np.float32)).shape[1] == 4
    assert encoder.calls == 2
