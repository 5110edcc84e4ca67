"""From responses to matches: names, averages, files, refusals."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from phosphene.encoders import Targets, make_encoder
from phosphene.errors import InputError
from phosphene.recordings import Recording, Study
from phosphene.rendering import Gallery, decode
from phosphene.stimuli import StimulusSet
from phosphene.table import Table
from phosphene.training import fit


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    ids = np.array([f"stim-{i:02d}" for i in range(40)])
    latent = rng.standard_normal((40, 6)).astype(np.float32)
    mixing = rng.standard_normal((6, 25))
    shown = np.tile(np.arange(40), 2)
    people = []
    for subject in ("sub-01", "sub-02"):
        responses = (latent[shown] @ mixing + 0.3 * rng.standard_normal((80, 25))).astype(np.float32)
        trials = Table({"stimulus_id": ids[shown]})
        people.append(Recording(subject, responses, trials, Table({axis: np.arange(25) for axis in "ijk"})))
    splits = {"default": {"train": ids[10:], "test": ids[:10]}}
    captions = [[f"thing {i}", "another\tline\nof words"] for i in range(40)]
    study = Study(StimulusSet(ids, captions=captions), people, splits, scaling="none")
    targets = Targets(ids, None, latent, make_encoder("gabor"))
    gallery = Gallery(ids, latent, captions, encoder=targets.identity)
    return study, fit("ridge", study, targets, progress=False), gallery


def test_single_trials_find_what_was_shown(fitted):
    study, decoder, gallery = fitted
    found = decode(decoder, study.split("test"), gallery, top=3)
    assert found.embeddings.shape == (40, 6)
    assert set(found.subjects) == {"sub-01", "sub-02"}
    shown = [name.split("/")[0] for name in found.names]
    assert np.mean(gallery.ids[found.rows[:, 0]] == shown) > 0.9
    np.testing.assert_allclose(
        found.embeddings[:20], decoder.predict(study.split("test").responses("sub-01"), "sub-01"), atol=1e-6
    )


def test_averages_of_a_study_and_of_an_array(fitted):
    study, decoder, gallery = fitted
    view = study.split("test")
    found = decode(decoder, view, gallery, subject="sub-02", average=True)
    ids, responses = view.averaged("sub-02")
    assert found.names.tolist() == ids.tolist()
    np.testing.assert_allclose(found.embeddings, decoder.predict(responses, "sub-02"), atol=1e-6)
    rows = np.flatnonzero(view.trials("sub-02")["stimulus_id"] == "stim-03")
    one = decode(decoder, view.responses("sub-02", rows), gallery, subject="sub-02", average=True)
    assert one.names.tolist() == ["average"]
    np.testing.assert_allclose(one.embeddings, found.embeddings[[3]], atol=1e-6)


def test_a_whole_study_without_splits(fitted):
    study, decoder, gallery = fitted
    bare = Study(study.stimuli, study.recordings, None, scaling="none")
    assert len(decode(decoder, bare, gallery).names) == 160


def test_what_is_written(fitted, tmp_path):
    study, decoder, gallery = fitted
    responses = {"sub-02": study.split("test").responses("sub-02", np.arange(3))}
    found = decode(decoder, responses, gallery, top=2, out_dir=tmp_path / "out")
    with np.load(tmp_path / "out" / "predictions.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["embeddings"], found.embeddings)
        assert stored["responses"].tolist() == ["trial-0001", "trial-0002", "trial-0003"]
    with (tmp_path / "out" / "matches.tsv").open() as stream:
        lines = list(csv.DictReader(stream, delimiter="\t"))
    assert len(lines) == 6
    assert lines[3]["response"] == "trial-0002"
    assert lines[3]["rank"] == "2"
    assert lines[0]["item"] == gallery.ids[found.rows[0, 0]]
    assert lines[0]["caption"] == f"thing {found.rows[0, 0]}"
    content = json.loads((tmp_path / "out" / "matches.json").read_text())
    assert content["gallery"] == {"items": 40, "search": "exact"}
    assert content["responses"][0]["matches"][0]["captions"][1] == "another\tline\nof words"
    assert content["responses"][2]["matches"][1]["similarity"] == pytest.approx(float(found.similarities[2, 1]))


def test_an_interruption_leaves_what_was_there(fitted, tmp_path, monkeypatch):
    study, decoder, gallery = fitted
    responses = {"sub-01": study.split("test").responses("sub-01")}
    decode(decoder, responses, gallery, top=1, out_dir=tmp_path / "out")
    before = (tmp_path / "out" / "matches.json").read_text()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("phosphene.rendering.decoding.write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode(decoder, responses, gallery, top=4, out_dir=tmp_path / "out")
    assert (tmp_path / "out" / "matches.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_new_person_is_decoded_by_a_subject_free_decoder_only(fitted):
    study, decoder, gallery = fitted
    responses = study.split("test").responses("sub-01")
    targets = Targets(gallery.ids, None, gallery.embeddings, make_encoder("gabor"))
    free = fit("ridge", study, targets, pool_subjects=True, progress=False)
    found = decode(free, responses, gallery)
    assert set(found.subjects) == {"new"}
    assert np.isfinite(found.similarities).all()
    named = decode(free, {"guest": responses}, gallery)
    np.testing.assert_array_equal(named.rows, found.rows)
    with pytest.raises(InputError, match="name the subject of these responses: sub-01, sub-02"):
        decode(decoder, responses, gallery)
    with pytest.raises(InputError, match="unknown subject"):
        decode(decoder, {"guest": responses}, gallery)


def test_refusals(fitted):
    study, decoder, gallery = fitted
    responses = study.split("test").responses("sub-01")
    with pytest.raises(InputError, match="25 voxels"):
        decode(decoder, responses[:, :9], gallery, subject="sub-01")
    with pytest.raises(InputError, match="voxels"):
        decode(decoder, responses[0], gallery, subject="sub-01")
    with pytest.raises(InputError, match="no responses"):
        decode(decoder, {}, gallery)
    broken = responses.copy()
    broken[2, 3] = np.nan
    with pytest.raises(InputError, match="row 2 at voxel 3"):
        decode(decoder, broken, gallery, subject="sub-01")
    narrow = Gallery(gallery.ids, gallery.embeddings[:, :4])
    with pytest.raises(InputError, match="width 4, the decoder predicts 6"):
        decode(decoder, responses, narrow, subject="sub-01")
    foreign = Gallery(gallery.ids, gallery.embeddings, encoder=make_encoder("pixels").identity)
    with pytest.raises(InputError, match="decoder's own encoder"):
        decode(decoder, responses, foreign, subject="sub-01")


def test_raw_arrays_for_a_decoder_of_scaled_sessions(fitted, caplog):
    study, _, gallery = fitted
    targets = Targets(gallery.ids, None, gallery.embeddings, make_encoder("gabor"))
    # offset and gain of a session's voxels say nothing of what was seen
    rng = np.random.default_rng(1)
    offset, gain = 9 * rng.standard_normal(25), np.exp(rng.standard_normal(25))
    scaled = Study(study.stimuli, study.recordings, {"default": study.roles()}, scaling="session")
    decoder = fit("ridge", scaled, targets, progress=False)
    raw = (study.split("all").responses("sub-01") * gain + offset).astype(np.float32)
    shown = study.split("all").trials("sub-01")["stimulus_id"]

    def hits(**options):
        found = decode(decoder, raw, gallery, subject="sub-01", **options)
        return np.mean(gallery.ids[found.rows[:, 0]] == shown), found.facts["zscored_by_own_trials"]

    assert hits()[0] < 0.5  # measured 0.33
    assert "z-scored within sessions" in caplog.text
    caplog.clear()
    share, told = hits(zscore=True)
    assert share > 0.8
    assert told
    assert caplog.text == ""
    with pytest.raises(InputError, match="at least 2 trials"):
        decode(decoder, raw[:1], gallery, subject="sub-01", zscore=True)
