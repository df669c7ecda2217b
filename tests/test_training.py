"""Random draws as pure functions, the rate, and runs that continue as if they had never stopped.

`test_training_definition.py` compares every number of a step with its definition."""

import copy
from unittest.mock import patch

import numpy as np
import pytest
import torch

from arpg_mini import training
from arpg_mini.config import TrainConfig
from arpg_mini.run.saving import Log
from tests.helpers import FakeIds, tiny_model


def test_an_epoch_visits_everything_once_in_its_own_order():
    visited = np.concatenate([training.visits(7, training.DATA, step, 8, 20) for step in range(5)])
    assert sorted(visited[:20]) == sorted(visited[20:]) == list(range(20))
    assert visited[:20].tolist() != visited[20:].tolist()
    assert (training.visits(7, training.DATA, 3, 8, 20) == visited[24:32]).all()


def test_no_two_purposes_share_a_random_stream():
    """Broken if two streams coincide (as with seed + purpose + step), or if two draws of a batch
    have one purpose: then the drops would depend on the orders."""
    box = [(seed, purpose, step) for seed in range(3) for purpose in range(9) for step in range(4)]
    assert len({training.generator(*at).random() for at in box}) == len(box)
    training.permutation.cache_clear()                           # another test may have drawn it
    with patch.object(training, "generator", side_effect=training.generator) as drawn:
        training.draw_batch(FakeIds(), TrainConfig(batch_size=8), 3, 0.5, seed=1, step=4)
    purposes = [call.args[1] for call in drawn.call_args_list]
    assert len(set(purposes)) == len(purposes) == 4


def test_the_learning_rate_rises_and_falls():
    config = TrainConfig(warmup=0.25, final_lr=1e-5)
    rates = [training.learning_rate(s, 100, config, 1e-3) for s in range(100)]
    assert rates[0] == pytest.approx(4e-5) and max(rates) == rates[24] == 1e-3
    assert (rates[24:] == sorted(rates[24:], reverse=True)
            and rates[-1] == pytest.approx(1e-5, rel=0.1))


def run_arpg(start, stop, state=None, config=TrainConfig(steps=12, batch_size=4, lr=1e-2)):
    model = tiny_model(dropout=0.2)
    average = training.average_of(model)
    optimizer = training.make_optimizer(model, 0.05, config.betas)
    if state:
        (model.load_state_dict(state[0]), average.load_state_dict(state[1]),
         optimizer.load_state_dict(state[2]))
    steps = training.train_arpg(model, model, average, FakeIds(), config, 3, optimizer, start)
    losses = [next(steps)["loss"].item() for _ in range(start, stop)]
    return losses, copy.deepcopy((model.state_dict(), average.state_dict(), optimizer.state_dict()))


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def test_arpg_continues_to_the_bit():
    """A run with dropout and class drops stops after 5 of 12 steps and continues. Every bit is the
    same as without the stop."""
    torch.manual_seed(99)
    whole, end = run_arpg(0, 12)
    first, middle = run_arpg(0, 5)
    torch.manual_seed(1)                                         # other code ran in between
    rest, end_again = run_arpg(5, 12, middle)
    assert first + rest == whole and same(end[0], end_again[0]) and same(end[1], end_again[1])
    assert whole[-1] < whole[0]


def test_the_log_drops_rows_after_the_resumed_step(tmp_path):
    log = Log(tmp_path / "log.csv", 0)
    for step in (10, 20, 30):
        log.row(step=step, epoch=0.5, train_loss=1.0, val_loss="", lr=1e-3, images_per_second=5.0)
    again = Log(tmp_path / "log.csv", 20)
    again.row(step=30, epoch=0.5, train_loss=2.0, val_loss=1.5, lr=1e-3, images_per_second=5.0)
    lines = (tmp_path / "log.csv").read_text().split()
    assert lines[0] == ("step,epoch,train_loss,val_loss,lr,images_per_second,gradient_norm,"
                        "skipped_steps")
    assert ([line.split(",")[0] for line in lines[1:]] == ["10", "20", "30"]
            and lines[3].startswith("30,0.5,2,1.5"))


def waits(work) -> set[str]:
    """The operations of `work` at which the CPU would wait for a device, found by the profiler.

    The fused AdamW waits for its step counts on a CPU only; its CUDA kernel reads them on the
    device.
    """
    def within(event, name: str) -> bool:
        return event is not None and (event.name == name or within(event.cpu_parent, name))

    with torch.profiler.profile() as profile:
        work()
    reads = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero",
             "aten::masked_select", "aten::equal", "aten::unique2"}
    assert any(event.name == "aten::mm" for event in profile.events())
    return {event.name for event in profile.events()
            if event.name in reads and not within(event, "aten::_fused_adamw_")}


@pytest.mark.parametrize("controlled", [False, True])
def test_training_never_waits_for_the_device(controlled):
    """Two steps with micro-batches and dropout do not wait. A step whose loss is read must wait."""
    model = tiny_model(torch.float32, dropout=0.1, control_stride=2 if controlled else 0)
    config = TrainConfig(steps=4, batch_size=8, micro_batch=3, loss_rows=16)
    optimizer = training.make_optimizer(model, config.weight_decay, config.betas)

    def edges(tokens):
        return torch.ones(len(tokens), 1, 6, 10)

    steps = training.train_arpg(model, model, training.average_of(model), FakeIds(), config, 0,
                                optimizer, control=edges if controlled else None)
    next(steps)
    assert waits(lambda: (next(steps), next(steps))) == set()
    assert "aten::item" in waits(lambda: next(steps)["loss"].item())
