"""Pretraining from start to model folder: learns, resumes to the same bits, stops where it must, says what it did."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tiny_pairs import PICTURES, coloured, counted, run, same, tiny, weights

from phosphene.encoders.mlip import MLIP, Tokenizer, save_model
from phosphene.errors import InputError, LeakageError
from phosphene.settings import presets
from phosphene.stimuli import StimulusSet, labelled
from phosphene.training import TrainingInterrupted
from phosphene.training.checkpoint import load_checkpoint
from phosphene.training.log import read_log
from phosphene.training.loop import TrainingError
from phosphene.training.pretraining import pretrain, pretrain_settings, sources
from phosphene.training.pretraining.loop import _Pretraining


def steps(out):
    """Lines of the log but for the clock."""
    return [{key: v for key, v in line.items() if key != "seconds"} for line in read_log(out / "log.jsonl")]


def test_it_learns_what_tells_scenes_apart(tmp_path):
    run(
        tmp_path,
        None,
        training={
            "steps": 120,
            "batch_size": 32,
            "learning_rate": 0.005,
            "probe_pictures": 192,
            "probe_steps": 60,
        },
        data={"objects": 1, "plain": 1.0, "hard_share": 0.0},
        objective={"temperature": 0.1},
    )
    card = json.loads((tmp_path / "scorecard.json").read_text())
    by_task = {(score["part"], score["task"]): score for score in card["scores"] if score["score"] == "spatial"}
    for part in ("seen compositions", "unseen compositions"):
        colour = by_task[part, "colour"]
        assert colour["low"] > colour["chance"] + 0.1, colour
    assert card["model"]["pairs_seen"] == 120 * 32
    text = (tmp_path / "model" / "card.md").read_text()
    assert "Trained on procedural scenes only" in text
    assert "| zero-shot: colour | unseen compositions | 192 | 17 |" in text
    curve = json.loads((tmp_path / "curve.json").read_text())
    assert curve["steps"][-1]["loss"] < curve["steps"][0]["loss"]
    assert [point["step"] for point in curve["probes"]] == [60, 120]
    assert curve["probes"][-1]["colour, seen compositions"] == by_task["seen compositions", "colour"]["value"]
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_a_run_can_be_taken_up_after_any_step(whole, tmp_path, monkeypatch):
    step = _Pretraining.step

    for name, last in (("early", 1), ("late", 5)):

        def failing(self, batches, last=last):
            if self.progress.step == last:
                self.save()
                raise MemoryError
            return step(self, batches)

        out = tmp_path / name
        monkeypatch.setattr(_Pretraining, "step", failing)
        with pytest.raises(MemoryError):
            run(out, training={"probe_steps": 3})
        monkeypatch.setattr(_Pretraining, "step", step)
        assert same(run(out, training={"probe_steps": 3}), whole)
        assert steps(out) == steps(whole.parent)


def test_work_since_the_last_checkpoint_is_done_again(whole, tmp_path, monkeypatch):
    step = _Pretraining.step

    def failing(self, batches):
        if self.progress.step == 5:
            raise MemoryError
        return step(self, batches)

    monkeypatch.setattr(_Pretraining, "step", failing)
    settings = {"probe_steps": 3, "checkpoint_steps": 3}
    with pytest.raises(MemoryError):
        run(tmp_path, training=settings)
    monkeypatch.setattr(_Pretraining, "step", step)
    assert same(run(tmp_path, training=settings), whole)
    assert steps(tmp_path) == steps(whole.parent)


def test_a_signal_stops_between_two_steps(whole, tmp_path, monkeypatch):
    encode = MLIP.encode_text

    def interrupted(self, *words, **options):
        monkeypatch.setattr(MLIP, "encode_text", encode)
        os.kill(os.getpid(), signal.SIGTERM)
        return encode(self, *words, **options)

    monkeypatch.setattr(MLIP, "encode_text", interrupted)
    with pytest.raises(TrainingInterrupted, match="after step 1 of 6; the same call with the run folder"):
        run(tmp_path, training={"probe_steps": 3})
    assert not (tmp_path / "model").exists()
    assert same(run(tmp_path, training={"probe_steps": 3}), whole)


def test_a_pool_is_rendered_before_the_first_step_and_can_be_stopped(tmp_path, monkeypatch):
    told, step, render = [], _Pretraining.step, sources.render_tensor
    module = sys.modules[pretrain.__module__]

    @contextmanager
    def bar(title, total, show):
        yield lambda done, text: told.append((title, done, total))

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return render(*arguments)

    monkeypatch.setattr(module, "progress_bar", bar)
    monkeypatch.setattr(sources, "_BLOCK", 8)
    monkeypatch.setattr(sources, "render_tensor", interrupted)
    with pytest.raises(TrainingInterrupted, match="stopped after 8 of 20 scenes were rendered"):
        run(tmp_path, None, data={"pool": 20})
    monkeypatch.setattr(sources, "render_tensor", render)
    told.clear()
    monkeypatch.setattr(_Pretraining, "step", lambda self, batches: told.append("step") or step(self, batches))
    pooled = run(tmp_path, None, data={"pool": 20})
    assert told[:4] == [("render", 8, 20), ("render", 16, 20), ("render", 20, 20), "step"]
    monkeypatch.setattr(sources, "_BLOCK", 512)
    assert same(pooled, run(tmp_path / "again", None, data={"pool": 20}))


def test_a_finished_run_is_not_done_again(whole, monkeypatch):
    monkeypatch.setattr(_Pretraining, "step", None)
    before = (whole / "model.safetensors").stat().st_mtime_ns
    assert run(whole.parent, training={"probe_steps": 3}) == whole
    assert (whole / "model.safetensors").stat().st_mtime_ns == before
    suffixes = {path.suffix for path in whole.parent.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".safetensors", ".md", ".png"}


def test_another_run_in_the_folder_is_refused(whole):
    with pytest.raises(InputError, match=r"training\.batch_size was 12, is now 10"):
        run(whole.parent, training={"probe_steps": 3, "batch_size": 10})
    with pytest.raises(InputError, match="seed was 0, is now 1"):
        run(whole.parent, seed=1, training={"probe_steps": 3})
    with pytest.raises(InputError, match="pairs was"):
        run(whole.parent, coloured(23), training={"probe_steps": 3})


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_number_that_is_none_stops_the_run_and_keeps_the_last_good_weights(whole, tmp_path, monkeypatch, what):
    backward = _Pretraining._backward

    def broken(self, batch, more):
        loss, parts = backward(self, batch, more)
        if self.progress.step == 4 and what == "gradient":
            next(iter(self.plain.parameters())).grad.fill_(torch.inf)
        return loss * torch.nan if self.progress.step == 4 and what == "loss" else loss, parts

    monkeypatch.setattr(_Pretraining, "_backward", broken)
    with pytest.raises(TrainingError, match=rf"{what} became \w+ in step 5 of 6 .*after step 4 are in .*checkpoints"):
        run(tmp_path, training={"probe_steps": 3})
    monkeypatch.setattr(_Pretraining, "_backward", backward)
    assert same(run(tmp_path, training={"probe_steps": 3}), whole)


def test_after_a_number_that_is_none_the_rate_may_be_lowered(tmp_path, monkeypatch):
    backward = _Pretraining._backward

    def broken(self, batch, more):
        loss, parts = backward(self, batch, more)
        bad = self.progress.step == 4 and self.config.learning_rate > 0.005
        return loss * torch.nan if bad else loss, parts

    monkeypatch.setattr(_Pretraining, "_backward", broken)
    for _ in range(2):  # the same call meets the same number
        with pytest.raises(TrainingError, match=r"a lower training\.learning_rate .* goes on from there"):
            run(tmp_path)
    with pytest.raises(InputError, match=r"training\.batch_size was 12, is now 8; training\.learning_rate was"):
        run(tmp_path, training={"learning_rate": 0.002, "batch_size": 8})
    out = run(tmp_path, training={"learning_rate": 0.002, "gradient_clip": 0.5})
    changed = {"training.gradient_clip": [1.0, 0.5], "training.learning_rate": [0.01, 0.002]}
    change = {"step": 4, "what": "the loss became nan in step 5 of 6", "changed": changed}
    facts = json.loads((out / "config.json").read_text())["facts"]
    assert facts["changes"] == [change]
    lines = [line for line in read_log(tmp_path / "log.jsonl") if line["event"] != "probe"]
    assert [line.get("changed") for line in lines] == [None, None, changed, None]
    assert lines[-1]["learning_rate"] < 0.002 < lines[1]["learning_rate"]
    words = "Changed after step 4, because the loss became nan in step 5 of 6: training.gradient_clip from 1.0 to 0.5"
    assert words in (out / "card.md").read_text()
    with pytest.raises(InputError, match=r"training\.learning_rate was 0\.002, is now 0\.001"):  # nothing stopped it
        run(tmp_path, training={"learning_rate": 0.001, "gradient_clip": 0.5})


def test_weights_that_are_not_finite_are_not_kept(tmp_path, monkeypatch):
    count = _Pretraining._count

    def exploding(self, *figures):
        count(self, *figures)
        if self.progress.step == 3:
            next(iter(self.plain.parameters())).data.fill_(torch.inf)

    monkeypatch.setattr(_Pretraining, "_count", exploding)
    with pytest.raises(TrainingError, match=r"in step 4 of 6 .*the weights after step 2 are in"):
        run(tmp_path, training={"checkpoint_steps": 1})
    tensors, state = load_checkpoint(tmp_path / "checkpoints" / "last.safetensors")
    assert state["step"] == 2
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.fixture
def gradients(monkeypatch):
    """Gradients of the steps of runs that change nothing."""
    found = []

    def step(self, batches):
        self.wrapped.zero_grad(set_to_none=True)
        for number in range(self.config.accumulate):
            self._backward(next(batches), number + 1 < self.config.accumulate)
        found.append({name: p.grad.clone() for name, p in self.plain.named_parameters() if p.grad is not None})
        self.progress.step += 1
        return 0.0

    monkeypatch.setattr(_Pretraining, "step", step)
    return found


def test_chunks_give_the_gradient_of_the_whole_batch(tmp_path, gradients):
    for chunk in (0, 5):
        run(tmp_path / str(chunk), training={"steps": 1, "chunk": chunk})
    whole, chunked = gradients
    assert "objective.pooled_scale.log_scale" in whole
    assert whole.keys() == chunked.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(chunked[name], gradient, rtol=1e-3, atol=1e-6)


def test_batches_that_accumulate_average_their_gradients(tmp_path, gradients):
    run(tmp_path / "both", training={"steps": 1, "accumulate": 2})
    run(tmp_path / "each", training={"steps": 2})
    both, first, second = gradients
    assert not torch.equal(first["model.text.norm.weight"], second["model.text.norm.weight"])
    for name, gradient in both.items():
        torch.testing.assert_close(gradient, (first[name] + second[name]) / 2, rtol=1e-3, atol=1e-6)


def test_the_log_tells_the_parts_of_all_batches_that_accumulate(tmp_path):
    run(tmp_path, training={"steps": 1, "accumulate": 2, "log_steps": 1})
    line = next(line for line in read_log(tmp_path / "log.jsonl") if line["event"] == "step")
    weighted = pretrain_settings(None, tiny()).objective.weights
    assert line["loss"] == pytest.approx(sum(weight * line[name] for name, weight in weighted.items()), rel=1e-5)


def test_a_run_shorter_than_the_log_has_a_curve(tmp_path):
    run(tmp_path / "long", training={"steps": 5, "log_steps": 1})
    run(tmp_path / "short", training={"steps": 5, "log_steps": 3})
    every = [line["loss"] for line in steps(tmp_path / "long") if line["event"] == "step"]
    curve = json.loads((tmp_path / "short" / "curve.json").read_text())
    assert [point["step"] for point in curve["steps"]] == [3, 5]
    assert [point["loss"] for point in curve["steps"]] == pytest.approx([sum(every[:3]) / 3, sum(every[3:]) / 2])
    run(tmp_path / "shortest", training={"steps": 2, "log_steps": 3})
    assert (tmp_path / "shortest" / "curve.png").exists()


def test_mixed_precision_works_on_a_cpu(whole, tmp_path):
    mixed = weights(run(tmp_path, training={"precision": "bf16-mixed", "chunk": 5}))
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in mixed.values())
    assert not same(whole, tmp_path / "model")


def test_a_run_of_a_version_that_knew_fewer_settings_goes_on(whole, tmp_path):
    shutil.copytree(whole.parent, tmp_path / "old")
    settings = json.loads((tmp_path / "old" / "config.json").read_text())
    assert settings["objective"].pop("token_bias") is None
    (tmp_path / "old" / "config.json").write_text(json.dumps(settings))
    assert run(tmp_path / "old", training={"probe_steps": 3}) == tmp_path / "old" / "model"


@pytest.mark.parametrize("name", presets("encoders", "mlip"))
def test_every_preset_is_valid(name):
    settings = pretrain_settings(name)
    assert settings.training.steps >= 1000
    assert settings.training.batch_size >= 128


def test_a_model_written_in_half_precision_is_what_was_scored(whole, tmp_path, monkeypatch):
    scored, module = {}, sys.modules[pretrain.__module__]
    finish = module._finish

    def spy(run_, settings, model, *others):
        scored.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return finish(run_, settings, model, *others)

    monkeypatch.setattr(module, "_finish", spy)
    half = run(tmp_path, training={"probe_steps": 3, "save_precision": "float16"})
    found = weights(half)
    assert all(torch.equal(tensor, scored[name]) for name, tensor in found.items())
    for name, tensor in weights(whole).items():
        assert torch.equal(found[name], tensor.half().float())
    assert (half / "model.safetensors").stat().st_size < 0.6 * (whole / "model.safetensors").stat().st_size
    assert "written as float16" in (half / "card.md").read_text()
    assert "float16" not in (whole / "card.md").read_text()


def test_a_shipped_model_of_the_pocket_preset_has_at_most_16_mb(tmp_path):
    settings = pretrain_settings("pocket")
    tokenizer = Tokenizer.train(["a ring"], 300)
    save_model(tmp_path / "m", MLIP(settings.model), tokenizer, half=settings.training.save_precision == "float16")
    assert (tmp_path / "m" / "model.safetensors").stat().st_size < 16e6


def test_a_tokenizer_can_be_given(whole, tmp_path):
    file, training = whole / "tokenizer.json", {"steps": 1}
    out = run(tmp_path / "a", coloured(12, seed=9), tokenizer=file, training=training)
    assert (out / "tokenizer.json").read_text() == file.read_text()
    assert "random weights, a given tokenizer" in (out / "card.md").read_text()
    assert run(tmp_path / "a", coloured(12, seed=9), tokenizer=file, training=training) == out
    with pytest.raises(InputError, match=r"tokenizer was '[0-9a-f]+', is now None"):
        run(tmp_path / "a", coloured(12, seed=9), training=training)
    other = tmp_path / "other.json"
    other.write_text(Tokenizer.train(["a ring"], 300).to_json())
    with pytest.raises(InputError, match=r"tokenizer was '[0-9a-f]+', is now '[0-9a-f]+'"):
        run(tmp_path / "a", coloured(12, seed=9), tokenizer=other, training=training)


def test_tokenizers_that_do_not_suit_are_refused(whole, tmp_path):
    good = json.loads((whole / "tokenizer.json").read_text())
    bare = {**good, "post_processor": None}
    vocabulary = good["model"]["vocab"]
    merged = max(vocabulary, key=vocabulary.get)
    gaps = {**good, "model": {**good["model"], "vocab": {**vocabulary, merged: 5000}}}
    file = tmp_path / "t.json"
    for content, options, message in (
        ("no tokenizer", {}, r"t\.json: not a tokenizer of the tokenizers library"),
        (json.dumps(bare), {}, r"t\.json: the tokenizer does not put <start> and <end> around a text"),
        (json.dumps(gaps), {}, r"t\.json: the tokenizer leaves out numbers"),
        (
            json.dumps(good),
            {"model": {"vocabulary": 270}},
            r"t\.json has \d+ entries, more than model\.vocabulary = 270",
        ),
        (json.dumps(good), {"start": whole}, "the model to start from has its own tokenizer"),
    ):
        file.write_text(content)
        with pytest.raises(InputError, match=message):
            run(tmp_path / "run", tokenizer=file, **options)
    with pytest.raises(InputError, match=r"none\.json cannot be read"):
        run(tmp_path / "run", tokenizer=tmp_path / "none.json")
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_lies_in_a_new_run_folder_is_not_taken(whole, tmp_path):
    shutil.copy(whole / "tokenizer.json", tmp_path)
    with pytest.raises(InputError, match=r"holds a tokenizer\.json and no run"):
        run(tmp_path, training={"steps": 1})
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokenizer.json"]


def test_settings_that_were_refused_leave_the_folder_to_others(tmp_path):
    for tables, message in (
        ({"model": {"text_context": 5}}, "longer than the context of 5 tokens"),
        ({"model": {"merge": {"tokens": 0.01}}}, "out of reach"),
    ):
        with pytest.raises(InputError, match=message):
            run(tmp_path, **tables)
        assert not list(tmp_path.iterdir())
    out = run(tmp_path, model={"text_context": 5}, data={"long_captions": "cut"}, training={"steps": 1, "ema": 0.0})
    assert "weights not averaged" in (out / "card.md").read_text()


def test_a_picture_in_both_parts_is_leakage(tmp_path):
    copies = StimulusSet(["q0", "q1"], PICTURES.pixels([7, 9]), [["other words"], ["for the same picture"]])
    with pytest.raises(LeakageError, match=r"2 pictures are in both 'training' and 'held-out': p07 = q0, p09 = q1"):
        run(tmp_path, held_out=copies)
    assert not tmp_path.joinpath("config.json").exists()
    out = run(tmp_path, held_out=coloured(6, seed=5))
    assert json.loads((out / "config.json").read_text())["facts"]["data"]["held_out_pictures"] == 6


def test_copies_of_a_picture_stay_on_one_side_of_the_split(tmp_path):
    order = np.repeat(np.arange(10), 3)
    stimuli = StimulusSet(
        [f"c{row:02d}" for row in range(30)], PICTURES.pixels()[order], [[f"caption {row}"] for row in range(30)]
    )
    facts = json.loads((run(tmp_path, stimuli, data={"held_out": 0.3}) / "config.json").read_text())["facts"]["data"]
    trained = {int(name[1:]) for name in facts["fitted_on"]}
    assert len(trained) == facts["training_pictures"] == 30 - facts["held_out_pictures"]
    assert facts["held_out_pictures"] >= 3
    pictures = {row // 3 for row in trained}
    assert trained == {3 * picture + copy for picture in pictures for copy in range(3)}


def test_classes_are_probed_by_their_prompts(tmp_path):
    stimuli = labelled(coloured(60), "paint", ["a {} picture", "something {}"])
    out = run(
        tmp_path,
        stimuli,
        classes="paint",
        training={"steps": 60, "batch_size": 24, "probe_pictures": 30},
        data={"held_out": 0.4},
    )
    scores = json.loads((out / "config.json").read_text())["facts"]["scores"]
    assert {(score["probe"], score["task"]) for score in scores} == {("zero-shot", "paint")}
    assert scores[0]["low"] > scores[0]["chance"]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"model": {"image_size": 18}}, "patch = 4 does not divide image_size = 18"),
        ({"model": {"frequency_head": False}}, r"frequency_weight and .* need model\.frequency_head = true"),
        ({"model": {"token_heads": False}}, r"need model\.token_heads = true"),
        ({"modle": {}}, "did you mean 'model'"),
        ({"training": {"step": 3}}, r"unknown setting of PairSteps: 'training\.step'.*Known: .*, steps,"),
    ],
)
def test_wrong_settings_are_named(tmp_path, tables, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path, **tables)
    assert not tmp_path.joinpath("config.json").exists()


def test_what_scenes_can_give_does_not_bind_pictures(tmp_path):
    for data, message in (
        ({"captions": 1, "sampled": 2}, r"data\.sampled = 2 is more than data\.captions = 1"),
        ({"simple_batches": 2, "sampled": 2}, r"one caption each \(data\.sampled = 1\)"),
    ):
        with pytest.raises(InputError, match=message):
            run(tmp_path, None, data=data)
    out = run(tmp_path, data={"captions": 1, "simple_batches": 2, "sampled": 2}, training={"steps": 1})
    assert json.loads((out / "config.json").read_text())["facts"]["pairs_seen"] == 2 * 12


def test_what_cannot_be_trained_on_is_refused(tmp_path):
    for stimuli, message in (
        (PICTURES.with_captions([["a"], *[[]] * 23]), "23 of 24 stimuli have no caption"),
        (StimulusSet(["a", "b"], captions=[["x"], ["y"]]), "no pixels"),
        (PICTURES.with_captions([["word " * 90]] * 24), "longer than the context of 80 tokens"),
        (coloured(2), "needs three different ones, found 2"),
    ):
        with pytest.raises(InputError, match=message):
            run(tmp_path / message[:5], stimuli, data={"held_out": 0.5})
    with pytest.raises(InputError, match=r"merge\.guide = 'text' spares what given texts name"):
        run(tmp_path, model={"merge": {"tokens": 0.5, "guide": "text"}})
    with pytest.raises(InputError, match="scenes have their own probes"):
        run(tmp_path, None, held_out=PICTURES)
    with pytest.raises(InputError, match="seed must be an integer"):
        run(tmp_path, seed=-1)


def test_each_picture_is_hashed_once(whole, tmp_path):
    (training, trained), (held_out, probed) = counted(PICTURES), counted(coloured(6, seed=5))
    lazy = {"steps": 1, "batch_size": 4, "memory_gb": 0.0}
    out = run(tmp_path, training, held_out=held_out, training=lazy)
    trained.read = probed.read = 0
    assert run(tmp_path, training, held_out=held_out, training=lazy) == out  # finished: only what tells it is the same
    assert (trained.read, probed.read) == (24, 6 + 6)  # the probes keep theirs
    alone, read = counted(PICTURES)
    run(tmp_path / "share", alone, training=lazy)
    assert read.read <= 24 + 2 + 3 * 4  # of two batches ahead


def test_captions_are_looked_at_before_the_pictures(whole, tmp_path):
    long = PICTURES.with_captions([["word " * 90]] * 24)
    for options in ({"start": whole}, {"tokenizer": whole / "tokenizer.json"}):
        stimuli, pixels = counted(long)
        with pytest.raises(InputError, match="longer than the context of 80 tokens"):
            run(tmp_path, stimuli, data={"long_captions": "refuse"}, training={"memory_gb": 0.0}, **options)
        assert pixels.read == 0


@pytest.mark.parametrize(("asked", "told"), [(13, True), (12, False)])
def test_a_batch_larger_than_there_are_pictures_is_told(tmp_path, caplog, asked, told):
    training = {"batch_size": asked, "steps": 2, "accumulate": 3}
    run(tmp_path, coloured(12), training=training, data={"held_out": 0.0})
    words = "training.batch_size = 13 is more than the 12 pictures: batches have 12, and 2 steps are 6 epochs"
    assert (words in caplog.text) == told


def test_other_held_out_pictures_are_another_run(tmp_path):
    training = {"steps": 1}
    run(tmp_path, held_out=coloured(6, seed=5), training=training)
    with pytest.raises(InputError, match=r"probes was .*, is now"):
        run(tmp_path, held_out=coloured(6, seed=6), training=training)
    run(tmp_path, held_out=coloured(6, seed=5), training=training)
