"""Compiled and recorded decodes equal plain ones, and a GPU can record the steps.

No GPU is needed: a tape replaces the CUDA graph. It records every operation with its tensors. Its
replay repeats each operation on the same memory, so numbers on the host keep their recorded values.
"""

import inspect
import re
from contextlib import contextmanager
from dataclasses import fields
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sample_mini
from arpg_mini import decoding
from arpg_mini.decoding import decode, decode_steps, make_plan, run_steps
from arpg_mini.run import replay
from arpg_mini.sampling import Settings
from tests.helpers import tiny_model

SIZES = [1, 2, 1, 3, 3, 5]                      # step sizes for 15 tokens
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select",
         "aten::lift_fresh"}                    # the last makes a tensor of numbers on the host


class Tape(TorchDispatchMode):
    """Replaces `replay.cuda_graph`: runs `work` and records its operations, so that they can be
    repeated. RuntimeError where CUDA would wait for the device or copy from the host."""

    def __init__(self, work, earlier):
        super().__init__()
        self.calls = []
        with self:
            work()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in WAITS:
            raise RuntimeError(f"{func}: CUDA would wait for the device")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        for func, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs))):
                # If the memory is the same, the call has written to it or returned a view of it.
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture(autouse=True)
def one_thread():
    """Several threads would make such small products slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model():
    """A tiny model that records on tapes."""
    made = tiny_model()
    made.run_steps = replay.Recorder(Tape)
    return made


@pytest.fixture
def taped(monkeypatch):
    """The recordings that are made."""
    made, whole = [], replay.Recording.__init__

    def count(self, *arguments):
        made.append(self)
        whole(self, *arguments)

    monkeypatch.setattr(replay.Recording, "__init__", count)
    return made


def arguments(number, **how):
    """Labels, seeds and settings of decode `number`. Their shapes are always the same."""
    known = torch.full((3, 15), -1)
    known[:, torch.tensor([2, 3, 7, 11]) + number] = torch.arange(12).view(3, 4) % (7 + number)
    labels = [number % 3, (number + 1) % 3, 3]
    return labels, [10 * number + i for i in range(3)], {"steps": 6, "known": known} | how


def agrees(model, number, **how):
    labels, seeds, how = arguments(number, **how)
    expected = decode(tiny_model(), labels, seeds, **how)
    assert torch.equal(decode(model, labels, seeds, **how), expected)
    return expected


@pytest.mark.parametrize("how", [
    {}, {"known": None}, {"known": None, "steps": SIZES}, {"guidance": 1.0},
    {"guidance": -2.0, "guidance_schedule": "constant", "against": [0, 3, 1]},
    {"within_step": "causal", "schedule": "constant"}, {"grid": (5, 3), "positions": "ntk"},
    {"temperature": 0.7, "top_k": 6, "top_p": 0.8}, {"temperature": 0}], ids=str)
def test_replayed_decodes_are_plain_ones(model, taped, how):
    """Decodes with other labels, seeds, known tokens and known positions use the same recording."""
    drawn = [agrees(model, number, **how) for number in range(4)]
    assert len(taped) == 1 and not torch.equal(drawn[2], drawn[3])
    assert taped[0].graphs and all(tape.calls for tape in taped[0].graphs)


def test_hints_are_replayed(taped):
    sizes = dict(control_stride=2, grid=(3, 5))
    model, plain = tiny_model(**sizes), tiny_model(**sizes)
    model.run_steps = replay.Recorder(Tape)
    drawn = []
    for number in range(3):
        control = torch.rand(1, 1, 6, 10, dtype=torch.float64)
        both = [decode(m, [0, 1], [4, 5], steps=5, control=control) for m in (model, plain)]
        assert torch.equal(*both)
        drawn.append(both[0])
    assert len(taped) == 1 and not torch.equal(drawn[1], drawn[2])
    assert torch.equal(decode(model, [0, 1], [4, 5], steps=5),
                       decode(plain, [0, 1], [4, 5], steps=5))
    assert len(taped) == 1 and model.run_steps.recording is None        # a decode without hints


def test_ids_of_earlier_decodes_stay(model):
    """A recording has one tensor of ids, but each decode must return its own."""
    results = [decode(model, *arguments(i)[:2], **arguments(i)[2]) for i in range(4)]
    for number, ids in enumerate(results):
        assert torch.equal(ids, agrees(tiny_model(), number))
    labels, seeds, how = arguments(1)
    streamed = [ids.clone() for ids in decode_steps(model, labels, seeds, **how)]
    plain = [ids.clone() for ids in decode_steps(tiny_model(), labels, seeds, **how)]
    assert len(streamed) == 6 and all(map(torch.equal, streamed, plain))


@pytest.mark.parametrize("changed", [
    {"steps": 5}, {"guidance": 3.0}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.5},
    {"guidance_schedule": "constant"}, {"within_step": "causal"}, {"known": None},
    {"grid": (5, 3), "known": None}, {"schedule": "constant"}], ids=str)
def test_another_decode_is_recorded_anew(model, taped, changed):
    for how, count in (({}, 1), (changed, 2), ({}, 3)):
        for number in range(3):
            agrees(model, number, **how)
        assert len(taped) == count


def test_settings_that_only_the_plan_uses_make_no_new_recording(model, taped):
    """Neither other data nor another way to write the same settings makes a new recording."""
    own = torch.stack([torch.randperm(15) for _ in range(3)])
    for how in ({}, {}, {"grid": [3, 5]}, {"orders": own}, {"against": [1, 2, 0]},
                {"steps": decoding.step_sizes(11, 6)}):
        agrees(model, 0, **how)
    assert len(taped) == 1


def test_steps_look_only_at_settings_that_are_compared():
    """Broken if the steps read a setting in `PLANNED`: a replay would use its recorded value."""
    class Watched:
        def __init__(self, how):
            self.how, self.read = how, set()

        def __getattr__(self, name):
            self.read.add(name)
            return getattr(self.how, name)

    how, model = Settings(steps=4), tiny_model()
    watched = Watched(how)
    for _ in run_steps(model, make_plan(model, [0, 1], [2, 3], how), watched):
        pass
    names = {f.name for f in fields(Settings)}
    assert replay.PLANNED < names and watched.read == names - replay.PLANNED


def test_weights_may_change_in_place_and_moved_ones_are_recorded_anew(model, taped):
    labels, seeds, how = arguments(1)
    for _ in range(2):
        decode(model, labels, seeds, **how)
    other = tiny_model(seed=1)
    model.load_state_dict(other.state_dict())
    expected = decode(other, labels, seeds, **how)
    assert torch.equal(decode(model, labels, seeds, **how), expected) and len(taped) == 1
    model.head.weight = torch.nn.Parameter(other.head.weight.detach().flip(0))
    other.head.weight = model.head.weight
    for _ in range(2):
        assert torch.equal(decode(model, labels, seeds, **how), decode(other, labels, seeds, **how))
    assert len(taped) == 2
    model.float(), other.float()
    for _ in range(2):
        assert torch.equal(decode(model, labels, seeds, **how), decode(other, labels, seeds, **how))
    assert len(taped) == 3


def test_a_decode_left_half_done(model, taped):
    """A decode is recorded only after a first one has run to its end. While a recording is
    replayed, no other decode uses its memory."""
    def begun(number, steps):
        labels, seeds, how = arguments(number)
        stream = decode_steps(model, labels, seeds, **how)
        for _ in range(steps):
            next(stream)
        return stream

    begun(0, 3).close()
    agrees(model, 0)
    assert not taped
    agrees(model, 1)
    stream = begun(2, 3)
    agrees(model, 1)                                    # at the same time
    for ids in stream:
        pass
    assert torch.equal(ids, agrees(tiny_model(), 2))
    begun(2, 3)                                         # this one is never continued
    assert not taped[0].busy
    agrees(model, 3)
    stream = begun(2, 3)
    for number in range(3):                             # another decode is recorded
        agrees(model, number, guidance=1.0)
    for ids in stream:
        pass
    assert torch.equal(ids, agrees(tiny_model(), 2)) and len(taped) == 2
    agrees(model, 3, guidance=1.0)
    assert len(taped) == 2


def test_two_first_decodes_side_by_side(model, taped):
    """The decode that began first ends after the other one has been recorded."""
    labels, seeds, how = arguments(0)
    stream = decode_steps(model, labels, seeds, **how)
    next(stream)
    for number in range(2):
        agrees(model, number, guidance=1.0)
    for ids in stream:
        pass
    assert torch.equal(ids, agrees(tiny_model(), 0)) and len(taped) == 1
    for number in range(3):
        agrees(model, number)
    assert len(taped) == 2


def test_nothing_to_decode(model, taped):
    known = torch.arange(15) % 11
    for _ in range(3):
        assert torch.equal(decode(model, [0], [1], known=known), known[None])
    assert not taped


def test_autocast_and_inference_mode(model, taped):
    """Under autocast nothing is recorded. A change of inference mode makes a new recording: tensors
    of inference mode may not be written outside it."""
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            agrees(model, 0)
    assert not taped
    for count, mode in ((1, True), (2, False), (3, True)):
        with torch.inference_mode(mode):
            for number in range(3):
                agrees(model, number)
            assert len(taped) == count


def wrong_steps(model, plan, how, wrong):
    for ids in run_steps(model, plan, how):
        wrong(ids)
        yield ids


@pytest.mark.parametrize("wrong", [
    lambda ids: ids[0, 0].item(), lambda ids: bool((ids < 0).any()), lambda ids: ids.nonzero(),
    lambda ids: torch.tensor([1])], ids="item bool nonzero host".split())
def test_a_step_that_waits_is_caught(wrong, model, monkeypatch):
    """A test of the tests above: the tape refuses what a CUDA graph can't record."""
    agrees(model, 0)
    monkeypatch.setattr(replay, "run_steps", partial(wrong_steps, wrong=wrong))
    with pytest.raises(RuntimeError, match="CUDA would wait for the device"):
        agrees(model, 0)


class AllOn(TorchDispatchMode):
    """Every tensor that an operation takes or makes must be on the device."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, result)):
            assert not isinstance(x, torch.Tensor) or x.device.type == self.device, f"{func}"
        return result


@pytest.mark.parametrize("how", [
    {}, {"guidance": 1.0, "known": None}, {"within_step": "causal"},
    {"temperature": 0.7, "top_k": 6, "top_p": 0.8}, {"temperature": 0}], ids=str)
def test_steps_happen_on_the_device_alone(how):
    """On the device `meta`, tensors have shapes but no values. Broken if a step waits for a value,
    or uses a tensor from the host: neither works there."""
    labels, seeds, how = arguments(0, **how)
    how, model = Settings(**how), tiny_model()
    plan = make_plan(model, labels, seeds, how)
    plan = plan._replace(**{name: v.to("meta") for name, v in plan._asdict().items()
                            if isinstance(v, torch.Tensor)})
    model.to("meta")
    with AllOn("meta"):
        assert len(list(run_steps(model, plan, how))) == 6
        for wrong in (torch.Tensor.tolist, lambda ids: ids + torch.arange(15),
                      lambda ids: ids.to("cpu"), lambda ids: ids[ids > 0]):
            with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
                list(wrong_steps(model, plan, how, wrong))


@contextmanager
def compiling():
    """Reset the compiler, before and afterwards."""
    torch._dynamo.reset()
    counters.clear()
    try:
        with torch._dynamo.config.patch(recompile_limit=8, specialize_float=False):
            yield
    finally:
        torch._dynamo.reset()
        counters.clear()


@pytest.mark.slow
def test_all_steps_and_layers_are_compiled_together():
    """The number of compilations does not grow with steps or layers. The next decodes need none."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        assert "item" not in {node.target for node in graph.graph.nodes}, "waits for the device"
        return graph.forward

    def count(steps, layers=2, batch=2, **how):
        """Compilations for a decode of 36 tokens with steps of one and of several tokens."""
        sizes = dict(grid=(6, 6), content_layers=layers, query_layers=layers + 1)
        made, plain = tiny_model(**sizes), tiny_model(**sizes)
        replay.compile_blocks(made, backend=backend)
        before = len(compiled)
        how = dict(steps=[1, 2] + [1] * (steps - 3) + [36 - steps], **how)
        drawn = [decode(m, [0, 1, 2, 3][:batch], range(batch), **how) for m in (made, plain)]
        assert torch.equal(*drawn) and not counters["graph_break"]
        return len(compiled) - before

    with compiling():
        first = count(8)
        assert 0 < first <= 10
        # Other numbers of steps, layers and samples, or no guidance: no new compilation.
        assert [count(16), count(30), count(8, layers=5), count(16, batch=4),
                count(16, batch=4, guidance=1.0)] == [0] * 5
        assert 0 < count(16, within_step="causal") <= 4


def draw(model):
    return [decode(model, [0, 1], [s, s + 1], steps=8) for s in range(3)]


@pytest.mark.slow
def test_with_the_real_compiler_it_draws_the_same():
    model = tiny_model(torch.float32)
    expected = draw(model)
    with compiling():
        replay.speed_up(model, torch.device("cpu"))
        assert model.run_steps is None
        drawn, code = run_and_get_code(draw, model)
    assert all(map(torch.equal, drawn, expected))
    # The cache is written in place: no other (2, B, H, slots, K) is made.
    assert code and not re.search(r"empty_strided_cpu\(\(2, \w+, 2, [^()]*, 12\)", "".join(code))


def test_graphs_replay_plain_decodes(taped):
    """With a GPU: CUDA graphs and compiled blocks. Without: tapes and plain blocks."""
    gpu = torch.cuda.is_available()
    model = tiny_model(torch.float32).to("cuda" if gpu else "cpu")
    expected = [decode(model, *arguments(i)[:2], **arguments(i)[2]) for i in range(4)]
    with compiling():
        if gpu:
            replay.speed_up(model, torch.device("cuda"))
        else:
            model.run_steps = replay.Recorder(Tape)
        drawn = [decode(model, *arguments(i)[:2], **arguments(i)[2]) for i in range(4)]
    assert all(map(torch.equal, drawn, expected)) and len(taped) == 1


def test_graphs_share_the_first_ones_memory(monkeypatch):
    """Without a GPU, only this can be tested: `torch.cuda.graph` gets arguments that it accepts."""
    class Graph:
        def pool(self):
            return self

    given, takes = [], inspect.signature(torch.cuda.graph)

    @contextmanager
    def graph(*arguments, **how):
        given.append(takes.bind(*arguments, **how).arguments)
        yield
        given[-1]["ended"] = True

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    made: list = []
    for _ in range(3):
        made.append(replay.cuda_graph(lambda: given[-1].update(worked="ended" not in given[-1]),
                                      made))
    assert [g["cuda_graph"] for g in given] == made and all(g["worked"] for g in given)
    assert [g["pool"] for g in given] == [None, made[0], made[0]]


def test_the_compile_flag_speeds_up_the_model(finished, sample, mistake, monkeypatch, tmp_path):
    sped = []
    monkeypatch.setattr(replay, "speed_up", lambda model, device: sped.append((model, device)))
    sample(finished[0], "--count", 2, "--steps", 2, "--npz", "x.npz")
    assert not sped
    sample(finished[0], "--count", 2, "--steps", 2, "--npz", "x.npz", "--compile")
    assert len(sped) == 1 and sped[0][0].run_steps is None
    monkeypatch.undo()
    monkeypatch.setattr(torch, "compile", lambda f: 1 / 0)
    assert "--compile" in mistake(sample_mini, finished[0], "--compile", "--device", "cpu")
