"""What stands around a network: its buffers, modes, folders, files, statistics and arguments."""

import copy
import warnings

import pytest
import torch
from torch import nn

import lobs
from lobs.calibration.batches import CalibrationBatches
from lobs.repair.refit import _minibatches

torch.manual_seed(0)
X = torch.randn(256, 16)
BATCHES = list(X.split(64))


def mlp(out=4):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, out)).eval()


class Around(nn.Module):
    """A network around the layers, with a forward pass that is given."""

    def __init__(self, forward, out=4):
        super().__init__()
        self.m = mlp(out)
        self.run = forward
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        return self.run(self, x)


def counted(self, x):
    self.seen += 1
    return self.m(x)


def test_buffers_that_a_forward_pass_writes_stay_as_they_were():
    model = Around(counted).eval()
    lobs.collect_statistics(model, BATCHES)
    assert model.seen.item() == 0
    options = {"method": "exact_obs", "density": 0.3, "allocation": "global", "sequential": True, "correct": "auto"}
    result = lobs.prune(model, batches=BATCHES, **options)
    assert model.seen.item() == result.model.seen.item() == 0


def test_a_shared_bias_is_nobodys_own():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval()
    model[2].bias = model[0].bias
    batches = [x + 3 for x in BATCHES]
    bias = model[0].bias.clone()
    for sequential in (False, True):
        result = lobs.prune(model, batches=batches, method="exact_obs", density=0.3, sequential=sequential)
        assert torch.equal(result.model[0].bias, bias)
        with torch.no_grad():
            x = torch.cat(batches)
            change = result.model[0](x) - model[0](x)
        assert result.layers[0].error == pytest.approx(float(change.square().sum(1).mean()), rel=1e-3)


@pytest.mark.parametrize("value", [-torch.inf, torch.inf])
def test_masked_logits(value):
    masked = torch.tensor([True, False, False, False])
    model = Around(lambda self, x: self.m(x).masked_fill(masked, value)).eval()
    options = {"method": "exact_obs", "density": 0.3, "sequential": True, "correct": "auto"}
    if value > 0:  # softmax of these is undefined: measured as worst, never as best
        lobs.prune(model, batches=BATCHES, allocation="relative", **options)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = lobs.prune(model, batches=BATCHES, allocation="global", **options)
    assert not any("nan" in note for note in result.notes)
    lobs.prune(model, batches=BATCHES, allocation="measured", method="magnitude", density=0.3)


def test_a_call_whose_result_is_only_looked_at_for_its_index():
    model = Around(lambda self, x: (self.m(x), self.m(x).argmax(-1))).eval()
    for allocation in ("fisher", "global"):
        lobs.prune(model, batches=BATCHES, density=0.3, allocation=allocation)


def test_autocast_around_the_call_changes_nothing():
    plain = lobs.prune(mlp(), batches=BATCHES, method="exact_obs", density=0.3, allocation="global", sequential=True)
    with torch.autocast("cpu", torch.bfloat16):
        other = lobs.prune(
            mlp(), batches=BATCHES, method="exact_obs", density=0.3, allocation="global", sequential=True
        )
    assert all(torch.equal(plain.masks[name], mask) for name, mask in other.masks.items())


def test_autocast_or_inference_mode_inside_a_network_does_not_touch_the_sums():
    def half(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.m[0](x)

    def inference(self, x):
        with torch.inference_mode():
            return self.m(x)

    exact = X.double().T @ X.double() / len(X)
    for forward in (half, inference):
        found = lobs.collect_statistics(Around(forward).eval(), BATCHES, layers=["m.0"])["m.0"].second_moment
        torch.testing.assert_close(found[:-1, :-1], exact, rtol=1e-5, atol=1e-6)


def test_statistics_of_another_network():
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    plain = lobs.collect_statistics(nn.Sequential(nn.Conv2d(2, 4, 3)), [torch.randn(4, 2, 6, 6)])
    with pytest.raises(ValueError, match=r"layer '0': a weight \(4, 2, 3, 3\) in 2 groups does not fit statistics of"):
        lobs.prune(grouped, plain, density=0.5)
    some = lobs.collect_statistics(nn.Sequential(nn.Linear(16, 4)), BATCHES)
    for model in (nn.Sequential(nn.Linear(17, 4, bias=False)), nn.Sequential(nn.Linear(16, 9))):
        for method in ("exact_obs", "apoz"):
            with pytest.raises(ValueError, match=r"layer '0': a weight .* does not fit statistics of 16 inputs"):
                lobs.prune(model, some, method, density=0.5)
    with pytest.raises(ValueError, match=r"layer '4' has the shape \(4, 24\) in the dense network, \(5, 24\)"):
        lobs.correct(mlp(), mlp(5), BATCHES, "bias")


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_damaged_part_is_computed_again(tmp_path, allocation):
    options = {"method": "exact_obs", "density": 0.3, "sequential": True, "allocation": allocation, "batches": BATCHES}
    expected = lobs.prune(mlp(), folder=tmp_path, **options)
    parts = list(tmp_path.rglob("*.safetensors"))
    for part in parts:
        part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r"is damaged .*: it is computed again"):
        found = lobs.prune(mlp(), folder=tmp_path, **options)
    assert all(torch.equal(expected.masks[name], mask) for name, mask in found.masks.items())


def test_a_folder_knows_what_the_network_answers(tmp_path):
    class Scaled(nn.Sequential):
        factor = 1.0

        def forward(self, x):
            return super().forward(x) * torch.tensor([self.factor, 1, 1, 1])

    model = Scaled(*mlp()).eval()
    options = {"method": "exact_obs", "density": 0.3, "allocation": "global", "batches": BATCHES, "folder": tmp_path}
    lobs.prune(model, **options)
    model.factor = 100.0
    with pytest.raises(ValueError, match=r"parts of another call: outputs differ"):
        lobs.prune(model, **options)


def test_files_that_are_no_statistics(tmp_path):
    (tmp_path / "junk").write_bytes(b"junk")
    for name in ("junk", "missing"):
        with pytest.raises(ValueError, match=r"(damaged or|there is) no file of statistics"):
            lobs.Statistics.load(tmp_path / name)


def test_a_sparse_file_with_two_values_for_one_weight(tmp_path):
    apart = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    tied = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    tied[1].weight = tied[0].weight
    lobs.save_sparse(apart, tmp_path / "apart")
    with pytest.raises(ValueError, match=r"'0.weight' and '1.weight' share their memory there"):
        lobs.load_sparse(tmp_path / "apart", tied)
    lobs.save_sparse(tied, tmp_path / "tied")
    assert torch.equal(lobs.load_sparse(tmp_path / "tied", tied)[1].weight, tied[0].weight)


def test_a_pattern_does_not_count_what_was_removed_before():
    first = lobs.prune(mlp(), batches=BATCHES, method="exact_obs", density=0.1).model
    result = lobs.prune(first, batches=BATCHES, method=lobs.solvers.make("exact_obs", pattern="2:4"), density=0.5)
    left = sum(int((p != 0).sum()) for p in result.model.parameters() if p.dim() > 1)
    assert sum(record.kept for record in result.layers) == left
    assert result.density <= 0.1


def test_later_batches():
    with pytest.raises(ValueError, match=r"Sequential cannot be run on a batch of inputs \(\d, 9\)"):
        lobs.prune(mlp(), batches=[BATCHES[0], torch.randn(4, 9)], density=0.3)
    for options in ({"allocation": "global"}, {"refit": True}):
        for batches in ({"batches": [BATCHES[0], torch.randn(4, 9)]}, {"held_out": [torch.randn(4, 9)]}):
            with pytest.raises(ValueError, match=r"Sequential cannot be run on a .*of inputs \(\d, 9\)"):
                lobs.prune(mlp(), None, "magnitude", **{"batches": BATCHES, **batches, **options}, density=0.3)
    with pytest.raises(ValueError, match=r"the first batch \(0, 16\) torch.float32 holds no inputs"):
        lobs.prune(mlp(), batches=[X[:0]], density=0.3)


@pytest.mark.parametrize("correct", ["batch_norm", "both", "auto"])
def test_a_last_batch_of_one(correct):
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).eval()
    lobs.prune(model, batches=list(X[:64].split(9)), density=0.3, correct=correct)
    if correct != "auto":
        with pytest.raises(ValueError, match="batches of at least 2 inputs"):
            lobs.prune(model, batches=list(X[:4].split(1)), density=0.3, correct=correct)


def test_a_correction_that_has_no_place_is_not_reported():
    for asked, done in {"batch_norm": "none", "both": "bias"}.items():
        assert lobs.prune(mlp(), batches=BATCHES, density=0.3, correct=asked).correction == done


def test_weights_made_in_inference_mode_and_complex_ones():
    with torch.inference_mode():
        model = mlp()
    with pytest.raises(ValueError, match=r"made in torch.inference_mode"):
        lobs.prune(model, batches=BATCHES, density=0.3)
    with pytest.raises(ValueError, match=r"layer '0' \(Linear\) multiplies torch.complex64"):
        model = nn.Sequential(nn.Linear(16, 4, dtype=torch.complex64))
        lobs.prune(model, batches=[x.to(torch.complex64) for x in BATCHES], density=0.3)


def test_sparse_outputs():
    model = Around(lambda self, x: self.m(x).to_sparse()).eval()
    lobs.prune(model, batches=BATCHES, method="magnitude", density=0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": "0.3"}, r"density must be the share of weights kept, a number; got '0.3'"),
        ({"density": True}, "density must be .* got True"),
        ({"size": "1k"}, "size must be the bytes"),
        ({"density": 0.3, "memory": "1G"}, "memory must be a ceiling in bytes"),
        ({"density": 0.3, "limits": {"0": 0.5}, "allocation": "relative"}, r"limits must map .* got '0': 0.5"),
        ({"density": 0.3, "limits": [("0", 0.5)]}, "limits must map .* got a list"),
        ({"densities": {0: 0.5}}, "densities must map layer names to densities, got 0: 0.5"),
        ({"density": 0.3, "exclude": [0]}, "exclude must be a list .* got 0 among them"),
        ({"density": 0.3, "exclude": None}, "exclude must be a list .* got None"),
        ({"density": 0.3, "layers": [None]}, "layers must be a list .* got None among them"),
        ({"density": 0.3, "method": 3}, "method must be a name"),
        ({"density": 0.3, "progress": True}, "progress must be a function"),
    ],
)
def test_arguments_of_the_wrong_type(options, message):
    with pytest.raises(TypeError, match=message):
        lobs.prune(mlp(), batches=BATCHES, **options)


def test_what_shared_the_budget_out_is_said():
    for options, expected in (
        ({"allocation": "global"}, ("fisher_units", "kl")),
        ({"allocation": "fisher"}, ("fisher", "kl")),
        ({"allocation": "relative"}, ("relative", None)),
        ({}, (None, None)),
    ):
        result = lobs.prune(mlp(), batches=BATCHES, method="exact_obs", density=0.2, **options)
        assert (result.shared_by, result.distance) == expected
        assert ("budget shared out by" in repr(result)) == (expected[0] is not None)
    single = lobs.prune(mlp(1), batches=BATCHES, method="exact_obs", density=0.2, allocation="fisher")
    assert single.distance == "relative"
    alone = lobs.prune(mlp(), lobs.collect_statistics(mlp(), BATCHES), "exact_obs", density=0.2, allocation="global")
    assert alone.shared_by == "relative"


def test_a_bias_that_a_function_uses_too():
    model = Around(lambda self, x: self.m(x) + self.m[4].bias).eval()
    with pytest.raises(ValueError, match=r"layer 'm.4': its weight or bias is used outside of it, too, by add"):
        lobs.prune(model, batches=BATCHES, density=0.3)
    lobs.prune(model, batches=BATCHES, density=0.3, exclude=["m.4"])


def test_a_folder_of_an_older_version_is_refused(tmp_path):
    (tmp_path / "counts.json").write_text('{"0": 3}')
    options = {"method": "exact_obs", "density": 0.3, "allocation": "global", "batches": BATCHES}
    with pytest.raises(ValueError, match=r"holds files and no call.json"):
        lobs.prune(mlp(), folder=tmp_path, **options)


def test_a_layer_that_nothing_depends_on_is_pruned_first():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    model[2].bias.data.fill_(-100.0)
    result = lobs.prune(model, batches=[torch.randn(64, 8)], density=0.1)
    assert result.density == pytest.approx(0.1, abs=0.01)
    assert result.layers[2].density > 0.5 > result.layers[0].density


def test_what_forward_passes_write_is_not_part_of_the_result(tmp_path):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.b(self.a(x).relu())

    model, batches = Counting(), [torch.randn(64, 8)]
    assert lobs.prune(model, batches=batches, density=0.3, folder=tmp_path).model.calls == 0
    other = copy.deepcopy(model)
    lobs.refit(model, other, batches, steps=3)
    assert (model.calls, other.calls) == (0, 0)
    lobs.prune(model, batches=batches, density=0.3, in_place=True)
    assert model.calls == 0


def test_a_plan_measures_a_copy_of_a_network_that_keeps_its_activations():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 12), nn.Linear(12, 3)

        def forward(self, x):
            self.last = self.a(x).relu()
            return self.b(self.last)

    model = Keeping()
    for allocation in ("fisher", "fisher_units", "global"):
        lobs.plan(model, batches=[torch.randn(64, 8)]).prune(density=0.3, allocation=allocation)
    copy.deepcopy(model)


def test_a_network_that_loses_nothing_more_is_not_refitted():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(torch.rand_like(layer.weight) < 0.4)
    batches = [torch.randn(64, 8)]
    result = lobs.prune(model, batches=batches, density=0.9)
    for name, value in result.model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-5, atol=1e-6)
    assert lobs.refit(model, copy.deepcopy(model), batches, steps=20).steps == 0


def test_inputs_that_a_network_computed_are_inputs_like_others():
    encoder, model = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
    lobs.prune(model, batches=[encoder(torch.randn(64, 8))], density=0.3)
    leaf = torch.randn(64, 8, requires_grad=True)
    lobs.prune(model, batches=[leaf], density=0.3)
    assert leaf.grad is None


def test_how_many_inputs_were_held_out_is_said():
    model, batches = mlp(), [X[:120]]
    found = lobs.prune(model, None, "magnitude", batches=batches, density=0.3, allocation="global")
    assert found.held_out == 20
    assert "on 20 held-out inputs" in repr(found)
    assert lobs.prune(model, None, "magnitude", batches=batches, density=0.3).held_out == 0


def test_an_order_of_the_data_does_no_harm():
    """Sorted by class, the held-out inputs and the minibatches still hold all classes."""
    labels = torch.arange(6).repeat_interleave(20)
    batches = CalibrationBatches(list(labels.float()[:, None].split(20)))
    learned, held_out = batches.divided()
    assert [len(set(torch.cat(list(part)).flatten().tolist())) for part in (learned, held_out)] == [6, 6]
    seen = next(_minibatches(learned, nn.Linear(1, 1), 48, seed=0))
    assert len(set(seen.alone.flatten().tolist())) == 6


@pytest.mark.parametrize("stages", [(s for s in (0.8, 0.5)), torch.tensor([0.75, 0.5]), [0.8, 0.5]])
def test_stages_may_come_in_any_sequence(stages):
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
    assert len(lobs.prune(model, batches=[torch.randn(64, 8)], density=0.3, stages=stages).stages) == 3


def test_what_the_best_had_to_leave_out_is_a_note():
    model, batches = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)), [torch.randn(64, 8)]
    statistics = lobs.collect_statistics(model, batches)
    assert "one shot" in lobs.prune(model, statistics, density=0.3).notes[-1]
    assert "read again" in lobs.prune(model, batches=iter(batches), density=0.3).notes[-1]
    with pytest.raises(ValueError, match="further inputs beside batches="):
        lobs.prune(model, statistics, density=0.3, held_out=batches)
