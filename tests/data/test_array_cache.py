"""Content-addressed arrays in memory and on disk: round trip, resuming, any number of processes, one-line errors for damage."""

import os

import ml_dtypes
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from motionaura_jax.core.errors import UserError
from motionaura_jax.data import array_cache
from motionaura_jax.data.array_cache import (
    ArrayCache,
    MemoryCache,
    clip_content,
    content_key,
    file_content,
    fill,
    recall,
    text_content,
)

META = {"kind": "text", "model": "0123", "dtype": "bfloat16"}
TEXTS = ["", "a", "a red circle", "東京 👩‍🚀", "\ud800", *map(str, range(30))]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(array_cache, "SHARD", 4)


def items(meta=META):
    return {content_key(meta, text_content(text)): text for text in TEXTS}


def encode(texts):
    return [np.full((len(text) % 5, 3), len(text), np.float32) for text in texts]


def check(folder, meta=META):
    cache = ArrayCache(folder)
    assert len(cache) == len(TEXTS) and cache.meta == meta
    for text, expected in zip(TEXTS, encode(TEXTS), strict=True):
        found = cache[cache.key(text_content(text))]
        assert found.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(found.astype(np.float32), expected)


def test_arrays_come_back_by_content(tmp_path):
    assert fill(tmp_path, META, items(), encode) == len(TEXTS)
    check(tmp_path)
    assert text_content("b") not in ArrayCache(tmp_path)
    assert fill(tmp_path, META, items(), lambda _: pytest.fail("computed again")) == 0


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 4)])
def test_any_shape_and_whole_numbers(tmp_path, shape):
    meta = {"dtype": "int32"}
    value = np.arange(np.prod(shape, dtype=int), dtype=np.int32).reshape(shape)
    fill(tmp_path, meta, {content_key(meta, b"x"): value}, list)
    cache = ArrayCache(tmp_path)
    assert cache[cache.key(b"x")].shape == shape
    np.testing.assert_array_equal(cache[cache.key(b"x")], value)


def test_an_interrupted_run_goes_on_in_another_number_of_processes(tmp_path):
    calls = []

    def breaks(texts):
        calls.append(texts)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(texts)

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, META, items(), breaks, process_index=1, process_count=2)
    assert len(ArrayCache(tmp_path)) == 8
    done = [fill(tmp_path, META, items(), encode, process_index=i, process_count=3) for i in range(3)]
    assert sum(done) == len(TEXTS) - 8
    check(tmp_path)


def test_processes_that_work_at_once_share_the_work(tmp_path):
    """The second process reads while the first one writes."""

    def first(texts):
        second.append(fill(tmp_path, META, items(), encode, process_index=1, process_count=2))
        return encode(texts)

    second = []
    fill(tmp_path, META, items(), first, process_index=0, process_count=2)
    check(tmp_path)
    assert second[0] == len(TEXTS) // 2


def test_keys_tell_models_and_contents_apart(tmp_path):
    assert content_key(META, b"a") != content_key({**META, "model": "4567"}, b"a")
    for name, content in {"a": b"1", "b": b"1", "c": b"2"}.items():
        (tmp_path / name).write_bytes(content)
    a, b, c = (file_content(tmp_path / name) for name in "abc")
    assert a == b != c


def test_what_cannot_be_made_is_left_out_and_tried_again(tmp_path):
    assert fill(tmp_path, META, items(), lambda texts: [None for _ in texts]) == 0
    assert len(ArrayCache(tmp_path)) == 0
    assert fill(tmp_path, META, items(), lambda texts: [None, *encode(texts)[1:]]) == len(TEXTS) - 9
    assert fill(tmp_path, META, items(), encode) == 9
    check(tmp_path)


def test_another_model_and_damage_are_one_line(tmp_path):
    with pytest.raises(UserError, match="is no cache; make one"):
        ArrayCache(tmp_path)
    fill(tmp_path, META, items(), encode)
    with pytest.raises(UserError, match="give another --output"):
        fill(tmp_path, {**META, "model": "4567"}, {}, encode)
    shard = next(tmp_path.glob("*.arrayrecord"))
    whole = shard.read_bytes()
    for part in (whole[:-30], whole[:100], b"", b"\x55" * len(whole)):
        shard.write_bytes(part)
        with pytest.raises(UserError, match=r"is damaged .*delete it and run encode again"):
            ArrayCache(tmp_path)
    for meta in ('{"dtype": "strange"}', '{"dtype": "O"}', '{"dtype": [1]}', "[1]", "{}", "[" * 100_000, "{", "\xff"):
        (tmp_path / "cache.json").write_text(meta, encoding="latin-1")
        with pytest.raises(UserError, match=r"cache.json: is damaged .*; delete the folder and run encode again"):
            ArrayCache(tmp_path)


@pytest.mark.parametrize(
    "record", [b"", b"\x01\0", b"\x01" + b"\xff" * 8, b"\x01" + (9).to_bytes(8, "little") + b"abcd"]
)
def test_a_shard_of_another_form_is_one_line(tmp_path, record):
    (tmp_path / "cache.json").write_text('{"dtype": "int32"}')
    writer = ArrayRecordWriter(str(tmp_path / "a.arrayrecord"), "group_size:1,uncompressed")
    for row in (b"k" * 16, record):
        writer.write(row)
    writer.close()
    with pytest.raises(UserError, match=r"a.arrayrecord: is damaged \(array 1: .*; delete it and run encode again"):
        ArrayCache(tmp_path)[b"k" * 16]
    (tmp_path / "a.arrayrecord").unlink()
    os.mkfifo(tmp_path / "b.arrayrecord")
    with pytest.raises(UserError, match="is a pipe or device"):
        ArrayCache(tmp_path)


class Encoder:
    """Encoder that sums each frame and counts its calls."""

    def __init__(self, limit):
        self.cache, self.calls = MemoryCache(limit), 0

    def encode(self, videos):
        self.calls += 1
        return videos.sum((-1, -2, -3), dtype=np.float32).astype(np.int32)[..., None, None]

    def __call__(self, *values):
        videos = np.stack([np.full((2, 4, 4, 3), value, np.float32) for value in values])
        return recall(self.cache, [clip_content(video) for video in videos], lambda: self.encode(videos))


def test_clips_in_memory_are_not_computed_again_in_any_order():
    known = Encoder(limit=8)
    first = known(1, 2)
    known(3, 4)
    again = known(4, 1)
    assert known.calls == 2
    np.testing.assert_array_equal(again[1], first[0])
    np.testing.assert_array_equal(again, Encoder(limit=0)(4, 1))


def test_the_oldest_clip_in_memory_is_forgotten_first():
    known = Encoder(limit=2)
    for value, calls in [(1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (2, 4)]:
        known(value)
        assert (known.calls, len(known.cache)) == (calls, min(calls, 2))


def test_a_batch_may_be_larger_than_the_memory():
    np.testing.assert_array_equal(Encoder(limit=1)(1, 2, 1), Encoder(limit=9)(1, 2, 1))


def test_the_same_bytes_in_another_shape_are_another_clip():
    assert clip_content(np.zeros((2, 4, 4, 3))) != clip_content(np.zeros((4, 2, 4, 3)))
