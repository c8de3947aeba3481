"""Draws are made ahead of the step, by threads, and come to the device in one copy; a CUDA graph replays the step."""

import contextlib
import dataclasses

import pytest
import torch
from conftest import QUICK, maker, parse
from torch import nn

from ddm import rng
from ddm.data.loading import load
from ddm.device import Machine
from ddm.methods.draws import AHEAD, Ahead
from ddm.methods.graphs import WARM_UP, Graphed
from ddm.methods.matching import Needs
from ddm.methods.step import Step
from ddm.networks import Initial, empty_network, flat, initialise


@pytest.mark.parametrize("model", ["ConvNet", "ConvNetBN", "ConvNetLN", "ResNet18", "AlexNet", "MLP"])
def test_the_vector_of_a_fresh_network_has_the_bits_of_a_fresh_network(model):
    g, h = (torch.Generator().manual_seed(7) for _ in range(2))
    net = initialise(empty_network(model, 3, 10, (32, 32), "cpu"), g)
    assert torch.equal(Initial(empty_network(model, 3, 10, (32, 32), "meta"))(h), flat(net))
    assert torch.equal(g.get_state(), h.get_state())


def test_modules_that_draw_from_the_global_generator_are_a_function_of_the_given_one():
    initial = Initial(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv1d(3, 4, 3), nn.GroupNorm(2, 4)))
    before = torch.get_rng_state()
    first, again, other = (initial(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first[-20:-8], other[-20:-8])
    assert torch.equal(first[-8:], torch.tensor([1.0] * 4 + [0.0] * 4))  # the norm
    assert torch.equal(torch.get_rng_state(), before)


def test_packed_tensors_are_unpacked_as_they_were():
    tensors = {
        "a": torch.arange(7),
        "b": torch.tensor(0.5),
        "c": torch.rand(3, 5),
        "d": torch.ones(3, dtype=torch.uint8),
    }
    block = rng.packed(tensors, pinned=False)
    for name, x in rng.unpacked(block, tensors).items():
        assert torch.equal(x, tensors[name]) and x.dtype == tensors[name].dtype
        assert block.data_ptr() <= x.data_ptr() < block.data_ptr() + block.numel()


class Elsewhere(Ahead):
    """On the CPU, with the threads and the copy of an accelerator."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.accelerator = True


def started(data_path, *flags):
    made = maker("DM_DDM", parse("DM_DDM", *QUICK, "--model", "ConvNetW32", *flags), load("CIFAR10", data_path))
    made.prepare()
    made.start(0, None)
    return made


@pytest.mark.parametrize("flags", [(), ("--preset", "fast,best", "--factor", "2")])
def test_steps_with_draws_of_threads_equal_steps_with_their_own(flags, data_path):
    plain, ahead = (started(data_path, *flags, "--Iteration", "12", "--lr_img", "0.01") for _ in range(2))
    ahead.ahead = Elsewhere(ahead.draws.draw, "cpu", last=12)
    for iteration in range(1, 13):
        plain.step(iteration)
        ahead.step(iteration)
        assert len(ahead.ahead.pending) == min(AHEAD, 12 - iteration)
    assert torch.equal(plain.images(), ahead.images())
    ahead.ahead.close()


def test_images_of_a_store_are_selected_before_they_are_read(data_path):
    made = started(data_path, "--preset", "fast,best", "--batch_real", "3")
    candidates = made.draws.draw(0, 1)["real"]
    rows = made.draws.selected(candidates)
    assert candidates.shape == (10, 8) and rows.shape == (10, 3)
    made.draws.away = made.draws.reads = True
    images = made.draws.draw(0, 1)["real"]
    assert torch.equal(images, made.data.x_train[rows]) and made.draws.selected(images) is images


def test_how_steps_are_taken_on_cuda_is_said_once(data_path):
    """The reason for eager steps; on a CPU there is nothing to say."""
    made, said = started(data_path, "--device", "cpu"), []
    made.say = said.append
    made._step_function()
    assert not said
    made.plan = dataclasses.replace(made.plan, machine=Machine("cuda"))
    assert isinstance(made._step_function(), Graphed) == made.draws.augmentation.captured
    made.draws.augmentation.captured = True
    assert isinstance(made._step_function(), Graphed) and not made.replayed
    said.clear()
    made.matcher.needs = Needs()  # of an objective that declares nothing
    for _ in range(2):
        assert made._step_function() == made._eager
    assert said == ["steps run eagerly, not as a CUDA graph: the objective does not declare Needs(captured=True)"]


def test_draws_of_a_jump_and_of_another_experiment_are_right():
    def draw(experiment, iteration):
        return {"x": torch.rand(3, generator=rng.generator(0, experiment, iteration, -1, "x"))}

    ahead, addresses = Elsewhere(draw, "cpu", last=100), set()
    for where in [(0, 1), (0, 2), (0, 50), (1, 1), (1, 2), (0, 3)]:
        found = ahead.next(*where)["x"]
        addresses.add(found.data_ptr())
        assert torch.equal(found, draw(*where)["x"])
    assert len(addresses) == 1  # as a CUDA graph needs it
    ahead.close()


def test_an_error_of_a_draw_reaches_the_step():
    def draw(experiment, iteration):
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        Elsewhere(draw, "cpu", last=3).next(0, 1)


class FakeGraph:
    """Replays what was captured by computing it again."""

    def replay(self):
        self.body()


def test_a_graph_replays_the_step_and_is_captured_again_for_other_addresses(monkeypatch):
    """What torch captures, the fake computes; the real one is in tests/test_cuda.py."""
    captured, state = [], torch.zeros(())

    def step(drawn):
        state.add_(drawn["x"])
        return Step(state[None], state > 0, state > 0, ("L",), [])

    @contextlib.contextmanager
    def capture(graph, capture_error_mode):
        before = state.clone()
        captured.append(capture_error_mode)
        yield
        state.copy_(before)  # a capture computes nothing
        graph.body = lambda: state.add_(x)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    said: list[str] = []
    graphed, x = Graphed(step, said.append), torch.ones(())
    results = [graphed({"x": x}).terms.item() for _ in range(WARM_UP + 3)]
    assert results == list(range(1, WARM_UP + 4)) and captured == ["thread_local"]
    x = torch.ones(())
    assert graphed({"x": x}).terms.item() == WARM_UP + 4 and len(captured) == 2
    assert set(said) == {"steps run as a CUDA graph"}


def test_a_failed_capture_is_one_warning_and_the_steps_go_on(monkeypatch):
    def capture(graph, capture_error_mode):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    said, streams = [], []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the usual stream")
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    graphed = Graphed(lambda drawn: drawn["x"] + 1, said.append)
    assert [graphed({"x": torch.tensor(k)}).item() for k in range(8)] == list(range(1, 9))
    assert streams == ["the usual stream"]
    assert said == [
        "warning: steps run eagerly, as the capture of a CUDA graph failed: "
        "operation not permitted when stream is capturing"
    ]


def test_the_cosine_schedule_falls_over_all_iterations(data_path):
    line = [*QUICK, "--model", "ConvNetW32", "--lr_img", "0.1", "--lr_schedule", "cosine", "--Iteration", "4"]
    made = maker("DM_DDM", parse("DM_DDM", *line), load("CIFAR10", data_path))
    made.prepare()
    rates = [made.draws.draw(0, iteration)["lr"].item() for iteration in (1, 2, 3, 4)]
    assert rates == pytest.approx([0.1, 0.085355, 0.05, 0.014645], abs=1e-5)
