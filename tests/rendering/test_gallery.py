"""Search against a sorted table; FAISS against exact search; galleries on disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from phosphene.encoders import make_encoder
from phosphene.errors import InputError, MissingDependencyError
from phosphene.rendering import Gallery
from phosphene.rendering import gallery as room
from phosphene.stimuli import StimulusSet


def cosine(a, b):
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T


def made(n=500, width=16, **options):
    generator = np.random.default_rng(0)
    items = generator.normal(size=(n, width)).astype(np.float32)
    queries = items[::50] + 0.3 * generator.normal(size=(len(items[::50]), width)).astype(np.float32)
    return Gallery([f"item-{i:04d}" for i in range(n)], items, **options), queries


def test_exact_search_equals_sorting_everything(monkeypatch):
    gallery, queries = made()
    table = cosine(queries, gallery.embeddings)
    expected = np.argsort(-table, axis=1, kind="stable")[:, :7]
    for block in (room._BLOCK_VALUES, 16 * 33):
        monkeypatch.setattr(room, "_BLOCK_VALUES", block)
        similarities, rows = gallery.search(queries, top=7)
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_allclose(similarities, np.take_along_axis(table, expected, axis=1), atol=1e-6)


def test_equal_items_come_in_order_and_top_is_bounded():
    gallery = Gallery(["a", "b", "c"], np.array([[1.0, 0], [2, 0], [0, 1]]))
    similarities, rows = gallery.search(np.array([[3.0, 0]]), top=10)
    assert rows.tolist() == [[0, 1, 2]]
    assert similarities.tolist() == [[1.0, 1.0, 0.0]]


def test_faiss_finds_what_exact_search_finds():
    pytest.importorskip("faiss", reason="the extra 'search' is not installed")
    exact, queries = made(n=4000)
    every = made(n=4000, search="faiss", probes=63)[0]
    np.testing.assert_array_equal(every.search(queries, 5)[1], exact.search(queries, 5)[1])
    np.testing.assert_allclose(every.search(queries, 5)[0], exact.search(queries, 5)[0], atol=1e-5)
    few = made(n=4000, search="faiss")[0]
    assert few.index.nprobe < 10
    assert (few.search(queries, 1)[1] == exact.search(queries, 1)[1]).mean() > 0.8


def test_faiss_is_chosen_above_the_limit_and_asked_for_by_name(monkeypatch):
    monkeypatch.setattr(room, "EXACT_UP_TO", 100)
    assert made(n=100)[0].method == "exact"
    assert made(n=101)[0].method == "faiss"
    assert made(n=101, search="exact")[0].method == "exact"

    def absent(*_):
        raise MissingDependencyError("Install it with: pip install 'phosphene[search]'")

    monkeypatch.setattr(room, "require", absent)
    gallery, queries = made(n=101)
    with pytest.raises(MissingDependencyError, match="search"):
        gallery.search(queries)


def test_saved_galleries_open_with_their_index(tmp_path):
    pytest.importorskip("faiss", reason="the extra 'search' is not installed")
    gallery, queries = made(n=2000, search="faiss", captions=[[f"number {i}"] for i in range(2000)], encoder="abc")
    found = gallery.search(queries)
    gallery.save(tmp_path / "gallery")
    opened = Gallery.open(tmp_path / "gallery", search="faiss")
    assert opened._index is not None
    for one, other in zip(opened.search(queries), found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (opened.captions[3], opened.encoder) == (("number 3",), "abc")
    made(n=1500, search="exact")[0].save(tmp_path / "other")
    (tmp_path / "other" / "index.faiss").write_bytes((tmp_path / "gallery" / "index.faiss").read_bytes())
    with pytest.raises(InputError, match="does not belong"):
        Gallery.open(tmp_path / "other", search="faiss")
    (tmp_path / "other" / "index.faiss").write_bytes(b"no index")
    with pytest.raises(InputError, match="not a readable FAISS index"):
        Gallery.open(tmp_path / "other", search="faiss")


def test_damaged_galleries_are_refused(tmp_path):
    made()[0].save(tmp_path / "gallery")
    (tmp_path / "gallery" / "embeddings.npy").write_bytes(b"\x93NUMPY broken")
    with pytest.raises(InputError, match="not a readable array"):
        Gallery.open(tmp_path / "gallery")
    (tmp_path / "gallery" / "gallery.json").write_text(json.dumps({"format": "something"}))
    with pytest.raises(InputError, match="not a gallery"):
        Gallery.open(tmp_path / "gallery")


def test_a_folder_of_pictures_becomes_a_gallery(tmp_path):
    generator = np.random.default_rng(3)
    pictures = generator.integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    (tmp_path / "pictures").mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "pictures" / f"p{number}.png")
    encoder = make_encoder("pixels")
    gallery = Gallery.from_path(tmp_path / "pictures", encoder, progress=False)
    embedding = encoder.encode(StimulusSet(["x"], pixels=pictures[2:3])).pooled
    similarities, rows = gallery.search(embedding, top=2)
    assert gallery.ids[rows[0, 0]] == "p2"
    assert similarities[0, 0] == pytest.approx(1, abs=1e-5)
    gallery.save(tmp_path / "stored")
    assert len(Gallery.from_path(tmp_path / "stored", encoder)) == 4
    with pytest.raises(InputError, match="identity"):
        Gallery.from_path(tmp_path / "stored", make_encoder("gabor"))


@pytest.mark.parametrize(
    ("ids", "shape", "options", "message"),
    [
        (["a", "a"], (2, 3), {}, "unique"),
        (["a"], (2, 3), {}, "one embedding"),
        ([], (0, 3), {}, "at least one item"),
        (["a", "b"], (2, 3), {"search": "hnsw"}, "auto, exact, faiss"),
        (["a", "b"], (2, 3), {"captions": [["x"]]}, "1 captions"),
    ],
)
def test_wrong_galleries_are_refused(ids, shape, options, message):
    with pytest.raises(InputError, match=message):
        Gallery(ids, np.ones(shape), **options)


def test_wrong_queries_are_refused():
    gallery, queries = made()
    with pytest.raises(InputError, match=r"\(q, 16\)"):
        gallery.search(queries[:, :5])
    with pytest.raises(InputError, match="found 0"):
        gallery.search(queries, top=0)
    queries[0, 0] = np.inf
    with pytest.raises(InputError, match="NaN or infinite"):
        gallery.search(queries)


def test_a_folder_of_photographs_of_different_sizes(tmp_path, caplog):
    rng = np.random.default_rng(0)
    for number, shape in enumerate([(40, 60), (48, 32), (12, 12)]):
        picture = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"photo-{number}.png")
    encoder = make_encoder("pixels")
    with caplog.at_level("INFO"):
        gallery = Gallery.from_path(tmp_path, encoder, progress=False)
    assert "resized to 32 x 32" in caplog.text
    assert gallery.ids.tolist() == ["photo-0", "photo-1", "photo-2"]
    given = Gallery.from_path(tmp_path, encoder, progress=False, image_size=32)
    np.testing.assert_array_equal(gallery.embeddings, given.embeddings)
    smaller = Gallery.from_path(tmp_path, encoder, progress=False, image_size=8)
    assert not np.array_equal(smaller.embeddings, given.embeddings)
