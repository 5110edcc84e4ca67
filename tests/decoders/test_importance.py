"""Importance finds what is informative in a virtual brain, and is flat where nothing was learnt."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import phosphene as ph
from phosphene.decoders import Decoder, make_decoder
from phosphene.decoders.importance import importance, integrated_gradients, margins, occlusion, patterns
from phosphene.encoders import Targets
from phosphene.errors import InputError
from phosphene.recordings import Study
from phosphene.virtual import make_settings, simulate

SUBJECT = "sub-01"
LITE_MIND = {"linear_rank": 0, "training": {"epochs": 12, "learning_rate": 2e-3, "patience": 0}}


@dataclass
class Brain:
    """A virtual person whose early areas alone answer to pictures, and decoders of Gabor energy."""

    study: Study
    informative: np.ndarray
    targets: Targets
    shuffled: Targets
    fitted: dict = field(default_factory=dict)

    def decoder(self, name: str, shuffled: bool = False) -> Decoder:
        """Fitted once for all tests of this module."""
        if (name, shuffled) not in self.fitted:
            targets = self.shuffled if shuffled else self.targets
            settings = LITE_MIND if name == "lite-mind" else {}
            self.fitted[name, shuffled] = ph.fit(name, self.study, targets, kind="pooled", progress=False, **settings)
        return self.fitted[name, shuffled]

    def importance(self, name: str, method: str = "auto", shuffled: bool = False):
        targets = self.shuffled if shuffled else self.targets
        return self.decoder(name, shuffled).importance(self.study.split("test"), targets, SUBJECT, method)

    def held_out(self, shuffled: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        ids, responses = self.study.split("test").averaged(SUBJECT)
        targets = self.shuffled if shuffled else self.targets
        return torch.from_numpy(responses), torch.from_numpy(targets.of(ids, "pooled"))

    def auc(self, values: np.ndarray) -> float:
        return float(roc_auc_score(self.informative, values))

    def roi_auc(self, value_of: dict[str, float]) -> float:
        rois = self.study.split("test").rois(SUBJECT)
        carries = [bool(self.informative[rois[name]].mean() > 0.5) for name in value_of]
        assert 0 < sum(carries) < len(carries)
        return float(roc_auc_score(carries, list(value_of.values())))


@pytest.fixture(scope="module")
def brain() -> Brain:
    silent = dict.fromkeys(("LOC", "FFA", "EBA", "PPA"), 0.0)
    settings = make_settings(
        None,
        subjects=1,
        sessions=2,
        repeats=2,
        person={"voxels": 250, "ncsnr": silent},
        stimuli={"test": 150, "common": 0, "own": 300, "size": 32, "captions": 1},
    )
    made = simulate(settings, 0, progress=False)
    study = made.study
    train = study.split("train").stimulus_ids
    targets = ph.encode(study.stimuli, "z:gabor", fit_on=train, progress=False)
    rng = np.random.default_rng(0)
    of = targets.pooled[:].copy()
    for ids in (train, study.split("test").stimulus_ids):
        rows = targets.rows(ids)
        of[rows] = of[rng.permutation(rows)]
    shuffled = Targets(targets.ids, None, of, targets.encoder)
    return Brain(study, made.truth.people[SUBJECT].informative, targets, shuffled)


# -- the informative voxels and regions are found -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ridge", "lite-mind"])
def test_patterns_find_the_informative_voxels(brain, name):
    # seeds 0, 1, 2: ridge 0.93 to 0.96, lite-mind 0.93 to 0.96
    assert brain.auc(brain.importance(name, "patterns").voxels) >= 0.9


def test_integrated_gradients_point_at_informative_voxels_and_name_the_informative_regions(brain):
    found = brain.importance("lite-mind")
    assert found.method == "gradients"
    # of two voxels that say the same a network may use one; seeds 0, 1, 2: 0.73 to 0.81
    assert brain.auc(found.voxels) >= 0.7
    rois = brain.study.split("test").rois(SUBJECT)
    assert brain.roi_auc({name: float(found.voxels[mask].mean()) for name, mask in rois.items()}) >= 0.9


@pytest.mark.parametrize("name", ["ridge", "lite-mind"])
def test_occlusion_tells_informative_regions_from_others(brain, name):
    found = brain.importance(name)
    assert found.margin > 0.1
    assert brain.roi_auc(found.rois) >= 0.9
    assert max(found.rois, key=found.rois.__getitem__) == "V1"
    assert abs(found.rois["NONVIS"]) < 0.1 * found.margin


# -- and where labels were shuffled there is nothing to find --------------------------------------------------------


@pytest.mark.parametrize("name", ["ridge", "lite-mind"])
def test_shuffled_labels_leave_a_flat_map(brain, name):
    true, shuffled = (brain.importance(name, "patterns", shuffled) for shuffled in (False, True))
    assert abs(shuffled.margin) < 0.1 * true.margin
    assert np.linalg.norm(shuffled.voxels) <= 0.05 * np.linalg.norm(true.voxels)
    assert max(map(abs, shuffled.rois.values())) < 0.25 * max(true.rois.values())


def test_gradients_of_shuffled_labels_have_no_preference(brain):
    true, shuffled = (brain.importance("lite-mind", "gradients", shuffled) for shuffled in (False, True))
    # seeds 0, 1, 2: 0.44 to 0.51
    assert abs(brain.auc(shuffled.voxels) - 0.5) < 0.15
    assert abs(shuffled.voxels.sum()) < 0.1 * true.voxels.sum()


# -- the parts, against slow versions -------------------------------------------------------------------------------


def test_margins_against_a_loop():
    rng = np.random.default_rng(1)
    predicted, shown = rng.normal(size=(7, 5)), rng.normal(size=(7, 5))
    p, y = predicted - shown.mean(0), shown - shown.mean(0)
    cosine = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in y] for a in p]
    slow = [cosine[i][i] - np.mean([cosine[i][j] for j in range(7) if j != i]) for i in range(7)]
    np.testing.assert_allclose(margins(torch.tensor(predicted), torch.tensor(shown)), slow, atol=1e-12)


def test_margins_are_one_sided_for_perfect_and_zero_for_constant_predictions():
    shown = torch.eye(4)
    assert torch.all(margins(shown, shown) > 1)
    constant = torch.tensor([[0.3, -1.0, 2.0, 0.1]]).expand(4, 4)
    assert abs(float(margins(constant, shown).mean())) < 1e-6


def test_patterns_against_a_closed_form(brain):
    decoder = brain.decoder("ridge")
    x, y = (one.double().numpy() for one in brain.held_out())
    weight, intercept = (
        dict(decoder.named_buffers())[f"{part}_0"].double().numpy() for part in ("weight", "intercept")
    )
    standardiser = decoder.standardisers[0]
    p = ((x - standardiser.mean.numpy()) / standardiser.deviation.numpy()) @ weight + intercept
    haufe = np.corrcoef(x.T, p.T)[: x.shape[1], x.shape[1] :]
    skill = np.array([max(0.0, np.corrcoef(p[:, d], y[:, d])[0, 1]) for d in range(p.shape[1])])
    margin = margins(torch.tensor(p), torch.tensor(y)).numpy()
    z = margin.mean() / (margin.std(ddof=1) / np.sqrt(len(margin)))
    slow = (1 - 2 / z) * np.sqrt(((skill * haufe) ** 2).mean(axis=1))
    assert z > 5
    fast = patterns(decoder, *brain.held_out(), SUBJECT).numpy()
    np.testing.assert_allclose(fast, slow, rtol=1e-3, atol=1e-4 * slow.max())


def test_patterns_do_not_change_with_the_scale_of_a_voxel(brain):
    """What Haufe patterns are for: a weight grows when its voxel is measured in larger units, the pattern does not."""
    decoder, (x, y) = brain.decoder("ridge"), brain.held_out()
    before = patterns(decoder, x, y, SUBJECT)
    scale = torch.linspace(0.1, 10, x.shape[1])

    class Rescaled(torch.nn.Module):
        def forward(self, responses, subject):
            return decoder(responses / scale, subject)

    torch.testing.assert_close(patterns(Rescaled(), x * scale, y, SUBJECT), before, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["ridge", "lite-mind"])
def test_integrated_gradients_are_complete(brain, name):
    decoder, (x, y) = brain.decoder(name), brain.held_out()
    found = integrated_gradients(decoder, x, y, SUBJECT, steps=32)
    with torch.no_grad():
        start = x.mean(dim=0, keepdim=True).expand_as(x)
        gained, base = (margins(decoder(one, SUBJECT).embedding, y).mean() for one in (x, start))
    assert float(found.sum()) == pytest.approx(float(gained - base), rel=0.03)


def test_integrated_gradients_of_the_default_steps_are_nearly_complete(brain):
    found = brain.importance("lite-mind")
    assert float(found.voxels.sum()) == pytest.approx(found.margin, rel=0.05)


def test_occlusion_orders_regions_by_what_they_carry():
    """Three regions of a made-up code: all of the signal, a little of it, none."""
    torch.manual_seed(0)
    y = torch.randn(400, 4)
    noise = torch.randn(3, 400, 6)
    strong, weak = 0.4 * y @ torch.randn(4, 6), 0.2 * y @ torch.randn(4, 6)
    x = torch.cat([strong + 0.5 * noise[0], weak + 0.5 * noise[1], 0.5 * noise[2]], dim=1)
    decoder = make_decoder("mindeye-mlp", subjects={SUBJECT: 18}, target_shape=(4,), width=32, blocks=0, projector=0)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(decoder(x[:300], SUBJECT).embedding, y[:300]).backward()
        optimizer.step()
    decoder.eval()
    x, y = x[300:], y[300:]
    masks = {name: np.arange(18) // 6 == at for at, name in enumerate(["strong", "weak", "none"])}
    lost = occlusion(decoder, x, y, SUBJECT, {**masks, "empty": np.zeros(18, dtype=bool)})
    assert lost["strong"] > 2 * lost["weak"]
    assert lost["weak"] > 0.02 > abs(lost["none"])
    assert lost["empty"] == 0.0


# -- the door -------------------------------------------------------------------------------------------------------


def test_importance_leaves_the_decoder_as_it_was(brain):
    decoder = brain.decoder("lite-mind")
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    decoder.zero_grad()
    decoder.train()
    with torch.no_grad():
        found = importance(decoder, brain.study.split("test"), brain.targets, SUBJECT, max_stimuli=20, steps=2)
    assert decoder.training
    decoder.eval()
    assert found.n_trials == 20
    assert found.voxels.shape == brain.informative.shape
    assert found.voxels.dtype == np.float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in decoder.state_dict().items())
    assert all(parameter.grad is None for parameter in decoder.parameters())


def test_auto_is_patterns_for_closed_forms(brain):
    assert brain.importance("ridge").method == "patterns"


def test_unknown_methods_and_too_few_stimuli_are_refused(brain):
    decoder, view = brain.decoder("ridge"), brain.study.split("test")
    with pytest.raises(InputError, match="gradients"):
        importance(decoder, view, brain.targets, SUBJECT, "gradient")
    with pytest.raises(InputError, match="at least three"):
        importance(decoder, view.restrict(view.stimulus_ids[:2]), brain.targets, SUBJECT)
