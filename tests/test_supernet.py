"""One set of weights for all members: members run as the networks extracted from it, and learn as they do."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from small_supernets import ELEMENTS, shaken, space
from tiny import CPU, DIGITS
from tiny import config as tiny_config
from torch import nn

from psvit import Arch, UserError
from psvit.data.datasets import Data, open_data
from psvit.data.samples import Batch
from psvit.engine.accelerator import open_machine
from psvit.search.batch_norms import recalibrate
from psvit.search.budget import Budget
from psvit.search.feasible_set import CLOSE, FeasibleSet
from psvit.search.search_config import SupernetConfig
from psvit.search.supernet import Supernet
from psvit.search.supernet_training import SupernetTrainer, load_supernet, supernet_training, train_supernet


@pytest.mark.parametrize(
    "changes", [{"like": like} for like in (
        {"pooling": "2d"}, {"pooling": "1d"}, {"pooling": "1d", "pool_conv": "depthwise", "qkv_bias": False},
        {"pooling": "2d", "pool_conv": "depthwise", "class_token": True}, {"pooling": "2d", "pool_op": "stride"},
        {"stem": "conv", "mlp": "local", "pooling": "1d"})]
    + [{**ELEMENTS, "like": {"pool_norm": True}}, {**ELEMENTS, "like": {"pooling": "1d", "class_token": True}}],
)  # fmt: skip
def test_members_equal_their_extracted_networks(changes: dict[str, Any]) -> None:
    supernet, rng = shaken(Supernet(space(**changes))), random.Random(0)
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        for _ in range(25):
            arch = supernet.space.sample(rng)
            alone = supernet.extract(arch).train()  # batch norms take the statistics of the batch, as in a supernet
            assert (supernet(images, arch) - alone(images)).abs().max() <= 1e-5, arch


@pytest.mark.parametrize("changes", [{}, {**ELEMENTS, "like": {"pool_norm": True}}], ids=["plain", "elements"])
def test_each_weight_that_a_member_uses_gets_the_gradient_of_its_network(changes: dict[str, Any]) -> None:
    supernet, rng = shaken(Supernet(space(**changes))), random.Random(2)
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    for _ in range(20):
        arch = supernet.space.sample(rng)
        alone = supernet.extract(arch).train()
        nn.functional.cross_entropy(alone(images), labels).backward()
        supernet.zero_grad()
        nn.functional.cross_entropy(supernet(images, arch), labels).backward()
        own = {name: weight.grad for name, weight in alone.named_parameters()}
        for weight in supernet.parameters():  # the slices of the gradient, by the names of the extracted network
            weight.data = torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
        for name, slice_ in supernet.slices(arch):
            assert own[name] is not None
            assert slice_.abs().sum() > 0, f"{name} of {arch} learns nothing"
            assert torch.allclose(slice_, own[name], atol=1e-5), name
        shaken(supernet)


def test_a_network_taken_out_has_the_statistics_of_its_own_images() -> None:
    torch.manual_seed(0)
    supernet = shaken(Supernet(space(**ELEMENTS, like={"pool_norm": True})))
    arch = Arch("AS-A", (16, 24), head_dim=8, patch_size=2, stem="pool", mlp="local", mlp_ratio=3.0, pool_norm=True)
    assert arch in supernet.space
    alone, images = supernet.extract(arch), torch.randn(64, 1, 8, 8)
    recalibrate(alone, [images])
    assert not alone.training
    with torch.no_grad():
        # running variances divide by one less than the number of values: here at least 64
        assert (supernet(images, arch) - alone(images)).abs().max() < 0.05
        one = alone(images[:1])
        recalibrate(alone, [images[:32], images[32:]])
        assert (alone(images[:1]) - one).abs().max() < 0.1, "the mean of both batches"
        assert (supernet(images[:1], arch) - one).abs().max() > 0.1, "one image has other statistics"


@pytest.fixture(scope="module")
def data() -> Data:
    return open_data(DIGITS)


def learning(data: Data, feasible: FeasibleSet, **options: Any) -> SupernetTrainer:
    config = supernet_training(tiny_config(epochs=1), SupernetConfig(**options), feasible.space, {})
    return SupernetTrainer(Supernet(feasible.space), feasible, config, open_machine(CPU), data)


@pytest.fixture
def feasible() -> FeasibleSet:
    return FeasibleSet(space(), Budget(macs=3e5))


def test_members_of_a_step_are_seeded_and_feasible(data: Data, feasible: FeasibleSet) -> None:
    trainer = learning(data, feasible, draws=3)
    drawn = [trainer.members(step) for step in range(50)]
    again = learning(data, feasible, draws=3)
    assert drawn == [again.members(step) for step in range(50)]
    assert all(arch in feasible for members in drawn for arch in members)
    assert len({arch for members in drawn for arch in members}) > 30
    macs = [[feasible.costs(arch)[0] for arch in members] for members in drawn]
    assert max(map(max, macs)) > 2 * min(map(min, macs))
    assert all(abs(other / first - 1) <= CLOSE for first, *others in macs for other in others)


def batch() -> Batch:
    return Batch(torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 3, 4, 5]), ())


def test_the_loss_is_the_mean_over_the_batch_each_part_by_its_member(data: Data, feasible: FeasibleSet) -> None:
    trainer, images = learning(data, feasible, draws=2), batch()
    first, second = trainer.members(5)
    supernet: Any = trainer.plain
    parts = [
        nn.functional.cross_entropy(supernet(images.images[n::2], arch), images.labels[n::2], label_smoothing=0.1)
        for n, arch in enumerate((first, second))
    ]
    assert torch.allclose(trainer.loss(images, 5), sum(parts) / 2, atol=1e-6)


def test_the_sandwich_rule_and_distillation(data: Data, feasible: FeasibleSet) -> None:
    trainer, images = learning(data, feasible, draws=2, sandwich=True, distill=True), batch()
    costs = {arch: feasible.costs(arch)[0] for arch in feasible}
    assert len(trainer.members(0)) == 3
    assert trainer.members(0)[0] == trainer.smallest
    assert trainer.smallest is not None
    assert trainer.largest is not None
    assert (costs[trainer.smallest], costs[trainer.largest]) == (min(costs.values()), max(costs.values()))
    supernet: Any = trainer.plain
    with torch.no_grad():
        taught = supernet(images.images, trainer.largest)
        expected = nn.functional.cross_entropy(taught, images.labels, label_smoothing=0.1)
        for number, arch in enumerate(trainer.members(0)):
            logits = supernet(images.images[number::3], arch)
            expected += nn.functional.cross_entropy(logits, taught.softmax(-1)[number::3], reduction="sum") / 6
    assert torch.allclose(trainer.loss(images, 0).detach(), expected / 2, atol=1e-6)


def test_a_trained_supernet_is_loaded_again_and_into_no_other_space(
    tmp_path: Path, data: Data, feasible: FeasibleSet
) -> None:
    lines: list[str] = []
    supernets = []
    for run in ({"save_every": 1}, {"resume": True}):
        lines.clear()
        recipe = tiny_config(tmp_path, epochs=2, run=run)
        config = supernet_training(recipe, SupernetConfig(), feasible.space, feasible.budget.given)
        supernets.append(train_supernet(feasible, config, data, lines.append)[0])
    trained, again = supernets
    assert all(
        torch.equal(a, b) for a, b in zip(trained.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert not any(line.startswith("epoch") for line in lines)
    with pytest.raises(UserError, match="has the shape"):
        load_supernet(Supernet(space(widths=((8, 16), (16, 24), (16, 40)))), tmp_path)
    (tmp_path / "supernet.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read"):
        load_supernet(Supernet(feasible.space), tmp_path)
