"""TF-IDF + SVD against scikit-learn, and what it must not see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from encoder_stimuli import make_stimuli
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from phosphene.encoders import Encoder, encode, make_encoder
from phosphene.errors import InputError
from phosphene.stimuli import StimulusSet


@pytest.mark.parametrize("sublinear", [True, False])
@pytest.mark.parametrize("stop_words", ["english", "none"])
@pytest.mark.parametrize("centre", [True, False])
def test_agrees_with_scikit_learn(sublinear: bool, stop_words: str, centre: bool, stimuli: StimulusSet) -> None:
    train, rest = stimuli.ids[:16], stimuli.ids[16:]
    encoder = make_encoder("tfidf-svd6", sublinear=sublinear, stop_words=stop_words, centre=centre)
    ours = encode(stimuli, encoder, fit_on=train)
    documents = [" ".join(captions) for captions in stimuli.captions]
    words = None if stop_words == "none" else stop_words
    vectors = TfidfVectorizer(stop_words=words, sublinear_tf=sublinear).fit(documents[:16])
    theirs = TruncatedSVD(6, algorithm="arpack", random_state=1).fit(vectors.transform(documents[:16]))
    known = theirs.transform(vectors.transform(documents[:16]))
    for ids, expected in ((train, known), (rest, theirs.transform(vectors.transform(documents[16:])))):
        expected = expected - known.mean(0) if centre else expected
        np.testing.assert_allclose(np.abs(ours.of(ids)), np.abs(expected), atol=1e-5)


def test_equals_the_closed_form(stimuli: StimulusSet) -> None:
    encoder = make_encoder("tfidf-svd5", stop_words="none", centre=False).fit(stimuli)
    documents = [" ".join(captions) for captions in stimuli.captions]
    matrix = TfidfVectorizer(sublinear_tf=True).fit_transform(documents).toarray()
    _, _, right = np.linalg.svd(matrix, full_matrices=False)
    signs = np.sign(right[np.arange(5), np.abs(right[:5]).argmax(1)])
    expected = matrix @ (right[:5] * signs[:, None]).T
    np.testing.assert_allclose(encoder.encode(stimuli).pooled, expected, atol=1e-5)


def test_centred_over_the_training_stimuli(stimuli: StimulusSet) -> None:
    targets = encode(stimuli, "tfidf-svd5", fit_on=stimuli.ids[:16])
    np.testing.assert_allclose(targets.of(stimuli.ids[:16]).mean(0), 0, atol=1e-6)


def test_repeated_words_count_by_their_logarithm(stimuli: StimulusSet) -> None:
    damped, plain = (make_encoder("tfidf-svd5", sublinear=on).fit(stimuli) for on in (True, False))
    said = [["dog " * 9 + "kite"], ["dog kite"]]
    assert damped.identity != plain.identity
    far, near = (np.linalg.norm(np.subtract(*encoder.encode_captions(said).pooled)) for encoder in (plain, damped))
    assert near < far


def test_order_of_training_does_not_matter(stimuli: StimulusSet) -> None:
    there = make_encoder("tfidf-svd5").fit(stimuli)
    back = make_encoder("tfidf-svd5").fit(stimuli.select(stimuli.ids[::-1]))
    assert there.identity == back.identity
    np.testing.assert_array_equal(there.encode(stimuli).pooled, back.encode(stimuli).pooled)


def test_held_out_captions_change_nothing(stimuli: StimulusSet) -> None:
    train = stimuli.ids[:16].tolist()
    changed = StimulusSet(
        stimuli.ids, captions=[c if i < 16 else ["utterly other words"] for i, c in enumerate(stimuli.captions)]
    )
    one, two = (encode(s, "tfidf-svd5", fit_on=train) for s in (stimuli, changed))
    assert one.identity == two.identity
    assert one.fitted_on == two.fitted_on == frozenset(train)
    np.testing.assert_array_equal(one.of(train), two.of(train))
    unseen = two.of(stimuli.ids[16:])
    assert (unseen == unseen[0]).all(), "words unseen in training count for nothing: only the centre is left"
    assert (one.of(stimuli.ids[16:]) != 0).any()


def test_new_captions_use_the_training_vocabulary(stimuli: StimulusSet, tmp_path: Path) -> None:
    encoder = make_encoder("tfidf-svd5").fit(stimuli)
    encoder.save(tmp_path / "e")
    again = Encoder.load(tmp_path / "e")
    texts = [["a dog paints xylophones"], ["the child", "holds rope"]]
    np.testing.assert_array_equal(again.encode_captions(texts).pooled, encoder.encode_captions(texts).pooled)
    plain = encoder.encode_captions([["a dog paints"]]).pooled
    np.testing.assert_allclose(encoder.encode_captions([["a dog paints qqq"]]).pooled, plain, atol=1e-6)


def test_too_many_components_are_refused(stimuli: StimulusSet) -> None:
    with pytest.raises(
        InputError, match=r"asks for 30 components; 24 training stimuli with \d+ words allow at most \d+"
    ):
        make_encoder("tfidf-svd30").fit(stimuli)
    twins = StimulusSet(
        [f"t{i}" for i in range(8)], captions=[[["red ball"], ["blue sea"], ["dog"]][i % 3] for i in range(8)]
    )
    with pytest.raises(InputError, match="8 training stimuli with 5 words allow at most 3"):
        make_encoder("tfidf-svd4").fit(twins)


@pytest.mark.parametrize("seed", range(6))
def test_the_number_in_the_refusal_works(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = [f"word{letter}" for letter in "abcdefghijkl"]
    own = [" ".join(rng.choice(words, 3)) for _ in range(rng.integers(2, 9))]
    poor = StimulusSet([f"s{i}" for i in range(20)], captions=[[str(rng.choice(own))] for _ in range(20)])
    with pytest.raises(InputError, match=r"allow at most \d+$") as told:
        make_encoder("tfidf-svd60").fit(poor)
    most = int(str(told.value).rsplit(" ", 1)[1])
    assert make_encoder(f"tfidf-svd{most}").fit(poor).encode(poor).pooled.shape == (20, most)
    with pytest.raises(InputError, match=f"allow at most {most}$"):
        make_encoder(f"tfidf-svd{most + 1}").fit(poor)


def test_captions_all_alike_allow_nothing() -> None:
    alike = StimulusSet(["a", "b", "c"], captions=[["dog"]] * 3)
    with pytest.raises(InputError, match="3 training stimuli with 1 words allow at most 0"):
        make_encoder("tfidf-svd1").fit(alike)


def test_no_words_at_all() -> None:
    dumb = StimulusSet(["a", "b"], captions=[["!"], ["?"]])
    with pytest.raises(InputError, match="no words"):
        make_encoder("tfidf-svd1").fit(dumb)


def test_refitting_forgets_the_old_vocabulary(stimuli: StimulusSet) -> None:
    encoder = make_encoder("tfidf-svd3").fit(stimuli)
    encoder.encode_captions([["a dog"]])
    other = make_stimuli(12, seed=9)
    encoder.fit(other)
    fresh = make_encoder("tfidf-svd3").fit(other)
    np.testing.assert_array_equal(encoder.encode(other).pooled, fresh.encode(other).pooled)
