"""The shelf of collected layers: groups under a ceiling, and where an interrupted collection goes on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lobs
from lobs.calibration import spilling
from lobs.calibration.spilling import SpilledStatistics, moment_bytes
from lobs.layers.coverage import Calls


def layers(widths):
    return {f"layer{index}": nn.Linear(width, 1) for index, width in enumerate(widths)}


def collected(modules, names):
    """Statistics of some layers, each recognisable."""
    sizes = {name: modules[name].in_features + 1 for name in names}
    return {name: lobs.LayerStatistics(size * torch.eye(size).double(), size, 1, True) for name, size in sizes.items()}


@pytest.mark.parametrize(
    "module",
    [nn.Linear(5, 2), nn.Linear(5, 2, bias=False), nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, (1, 2), groups=2, bias=False)],
    ids=str,
)
def test_a_moments_bytes_are_those_that_are_collected(module):
    inputs = torch.randn(3, 5) if isinstance(module, nn.Linear) else torch.randn(3, 4, 3, 3)
    moment = lobs.collect_statistics(nn.Sequential(module), [inputs])["0"].second_moment
    assert moment_bytes(module) == moment.numel() * moment.element_size()


@settings(max_examples=30, deadline=None)
@given(
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    memory=st.integers(1, 3000),
    never=st.integers(0, 7),
    data=st.data(),
)
def test_groups_are_as_large_as_the_ceiling_allows_and_every_layer_comes_once(widths, memory, never, data):
    modules = layers(widths)
    order = data.draw(st.permutations(list(modules)))
    order = order[: max(1, len(order) - never)]  # the rest is never called
    shelf, groups = SpilledStatistics(modules, memory, None, False), []
    while group := shelf.next_group([]):
        groups.append(group)
        shelf.put(collected(modules, [name for name in group if name in order]), Calls(order))
    sizes = {name: moment_bytes(module) for name, module in modules.items()}
    remaining = list(modules)  # as long as nothing is known of the calls
    for group in groups:
        assert group == remaining[: len(group)]
        assert len(group) == 1 or sum(sizes[name] for name in group) <= memory
        rest = remaining[len(group) :]
        assert not rest or sum(sizes[name] for name in [*group, rest[0]]) > memory
        remaining = [name for name in order if name in rest]
    assert not remaining
    statistics = shelf.statistics()
    assert list(statistics) == statistics.calls.called == order
    for name, layer in statistics.items():
        assert layer.samples == modules[name].in_features + 1
    assert shelf.several == (sum(sizes.values()) > memory)


def test_layers_that_fit_are_handed_back_as_they_are():
    modules = layers([3, 4])
    shelf, results = SpilledStatistics(modules, 10**6, None, False), collected(modules, modules)
    assert shelf.next_group(iter([])) == list(modules), "one pass is enough for an iterator"
    shelf.put(results, Calls(list(modules)))
    assert not shelf.several
    assert all(shelf.statistics()[name] is results[name] for name in modules)


def test_an_iterator_serves_for_the_last_group_alone(tmp_path):
    modules = layers([3, 3, 3])
    memory = 2 * moment_bytes(modules["layer0"])
    shelf = SpilledStatistics(modules, memory, tmp_path, False)
    message = r"of 3 layers take 3.58e-07 GiB, the ceiling is 2.38e-07 GiB \(memory=\).* the list_iterator given is"
    with pytest.raises(ValueError, match=message):
        shelf.next_group(iter([]))
    shelf.put(collected(modules, shelf.next_group([])), Calls(list(modules)))
    assert shelf.next_group(iter([])) == ["layer2"]


def test_a_new_shelf_goes_on_where_another_one_stopped(tmp_path):
    modules = {"a/b": nn.Linear(3, 1), "never": nn.Linear(2, 1), "a%2Fb": nn.Linear(4, 1), "last": nn.Linear(5, 1)}
    calls = Calls(["last", "a%2Fb", "a/b"], {"never": "mm"}, [])
    first = SpilledStatistics(modules, 1, tmp_path, False)
    assert first.next_group([]) == ["a/b"]
    first.put(collected(modules, ["a/b"]), calls)
    second = SpilledStatistics(modules, 1, tmp_path, False)
    assert second.next_group([]) == ["last"]
    second.put(collected(modules, ["last"]), Calls(["other calls do not count any more"]))
    third = SpilledStatistics(modules, 10**6, tmp_path, False)
    assert third.next_group([]) == ["a%2Fb"]
    third.put(collected(modules, ["a%2Fb"]), calls)
    assert third.next_group([]) == []
    statistics = third.statistics()
    assert [layer.features for layer in statistics.values()] == [5, 4, 3]
    assert statistics.calls == calls


def test_files_do_not_count_before_it_is_known_which_layers_are_called(tmp_path):
    modules = layers([3, 4])
    shelf = SpilledStatistics(modules, 1, tmp_path, False)
    shelf.put(collected(modules, ["layer0"]), Calls(list(modules)))
    (tmp_path / spilling.CALLS).unlink()
    assert SpilledStatistics(modules, 10**6, tmp_path, False).next_group([]) == ["layer0", "layer1"]


def test_processes_collect_the_same_groups(tmp_path, monkeypatch):
    """The tightest ceiling counts for all, and so does the process that got least far."""
    modules = layers([3, 3, 3, 3])
    size, answers = moment_bytes(modules["layer0"]), []
    monkeypatch.setattr(spilling, "gathered", lambda value: [value, answers.pop(0)])
    answers += [2 * size, Calls(list(modules))]
    shelf = SpilledStatistics(modules, 3 * size, tmp_path, True)
    shelf.put(collected(modules, ["layer0", "layer1"]), Calls(list(modules)))
    answers += [["layer1", "layer2", "layer3"]]
    assert shelf.next_group([]) == ["layer1", "layer2"]
    answers += [3 * size, None]  # the other one was interrupted before it wrote down what is called
    assert SpilledStatistics(modules, 3 * size, tmp_path, True)._calls is None
    assert not answers


@pytest.mark.parametrize("spoil", [lambda content: content[:-5], lambda content: content[:-1] + b"\x01", lambda _: b""])
def test_a_damaged_layer_is_collected_again(tmp_path, spoil):
    modules = layers([3, 4])
    shelf = SpilledStatistics(modules, 10**6, tmp_path, False)
    shelf.put(collected(modules, list(modules)), Calls(list(modules)))
    file = tmp_path / "layer1.safetensors"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.warns(UserWarning, match="layer1.safetensors is damaged .*: it is computed again"):
        assert SpilledStatistics(modules, 10**6, tmp_path, False).next_group([]) == ["layer1"]
    (tmp_path / spilling.CALLS).write_text("{")
    with pytest.warns(UserWarning, match="calls.json is damaged: it is computed again"):
        assert SpilledStatistics(modules, 10**6, tmp_path, False).next_group([]) == list(modules)
