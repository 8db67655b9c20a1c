"""Cost: equal to torch's own counts to the integer, to DeiT's published costs, and reached by scaling."""

import random
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from psvit import VARIANTS, Arch, PSViT, UserError
from psvit.arch.arch import Pooling
from psvit.arch.cost import layer_costs, macs, params, scale_to
from psvit.arch.variants import FAMILIES

DEIT = {
    "tiny": Arch("A" * 12, widths=(192,), pooling="1d"),
    "small": Arch("A" * 12, widths=(384,), pooling="1d"),
    "base": Arch("A" * 12, widths=(768,), pooling="1d"),
}


def random_genotype(rng: random.Random) -> str:
    """A member of the compact set: attend, share or pool at every gap between layers."""
    return "A" + "".join(rng.choice(["A", "S", "-A"]) for _ in range(rng.randint(4, 12) - 1))


def random_network(rng: random.Random) -> tuple[Arch, tuple[int, int], int, int]:
    """An Arch, a (height, width), in_chans and num_classes."""
    genotype, head_dim = random_genotype(rng), rng.choice([8, 16])
    stride = rng.choice([4, 8, 12])
    arch = Arch(
        genotype,
        widths=tuple(head_dim * rng.randint(1, 4) for _ in genotype.split("-")),
        head_dim=head_dim,
        mlp_ratio=rng.choice([1.5, 2.7, 3.0, 4.0]),
        pooling=rng.choice(["1d", "2d"]),
        stride=stride,
        patch_size=stride + rng.choice([0, 0, 4]),
        class_token=rng.choice([False, True]),
        qkv_bias=rng.random() < 0.7,
        pool_order=rng.choice(["conv-pool", "pool-conv"]),
        pool_conv=rng.choice(["full", "depthwise"]),
        pool_kernel=rng.choice([1, 3, 5]),
        pool_op=rng.choice(["max", "avg", "stride"]),
        sharing=rng.choice(["map", "map", "projections"]),
        pool_norm=rng.choice([False, True]),
        mlp=rng.choice(["plain", "local"]),
    )
    sides = rng.choice([(64, 64), (64, 96), (37, 53), (96, 41)])
    return arch, sides, rng.choice([1, 3]), rng.choice([0, 10])


RANDOM = [random_network(random.Random(number)) for number in range(120)]
WINDOWED = [
    (Arch("ASA-AS-A", (16, 24, 32), 8, patch_size=4, windows=windows, sharing=sharing, mlp=mlp), sides, 3, 5)
    for sides in ((20, 28), (37, 53), (64, 16))
    for windows in ((3, 2, 0), (1, 1, 1), (4, 0, 2), (50, 50, 50))
    for sharing, mlp in (("map", "plain"), ("map", "local"), ("projections", "plain"))
]
STEMS = [
    (Arch("AS-A", (64, 72), 8, pooling=pooling, patch_size=stride, stem=stem), (21, 30), in_chans, 5)
    for stem in ("conv", "pool")
    for pooling in get_args(Pooling)
    for stride in (2, 4, 8, 16)
    for in_chans in (1, 3)
]


@pytest.mark.usefixtures("explicit_attention")
def test_macs_and_params_are_torchs_own() -> None:
    for arch, sides, in_chans, num_classes in [*RANDOM, *WINDOWED, *STEMS]:
        model = PSViT(arch, img_size=sides, in_chans=in_chans, num_classes=num_classes).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, in_chans, *sides))
        assert 2 * macs(arch, sides, in_chans, num_classes) == counter.get_total_flops(), arch
        assert params(arch, sides, in_chans, num_classes) == sum(p.numel() for p in model.parameters()), arch


def test_layer_costs_describe_the_layers_that_run() -> None:
    arch = Arch("AS-ASS-A", widths=(16, 32, 48), head_dim=16, pooling="1d", stride=8)
    costs = layer_costs(arch, (40, 56), num_classes=7)
    assert sum(layer.macs for layer in costs) == macs(arch, (40, 56), num_classes=7)
    assert sum(layer.params for layer in costs) == params(arch, (40, 56), num_classes=7)
    assert [layer.name for layer in costs][:4] == [
        "patch embedding", "stage 1 layer 1", "stage 1 layer 2", "pooling 1",
    ]  # fmt: skip
    model = PSViT(arch, img_size=(40, 56), num_classes=7).eval()
    shapes: list[tuple[int, int]] = []
    for stage in model.stages:
        for block in stage.blocks:
            block.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output[0].shape[1:])))
    model(torch.randn(1, 3, 40, 56))
    assert shapes == [(layer.tokens, layer.width) for layer in costs if layer.kind in "AS"]
    assert [layer.grid for layer in costs if layer.kind in ("embed", "pool")] == [(5, 7), (1, 18), (1, 9)]


def test_deits_published_costs_are_ours_and_its_norms() -> None:
    """In G MACs and M parameters."""
    for size, exact, published, parameters in (
        ("tiny", 1_253_683_200, 1.26, 5.7),
        ("small", 4_598_882_304, 4.61, 22.1),
        ("base", 17_563_828_224, 17.58, 86.6),
    ):
        arch = DEIT[size]
        assert macs(arch) == exact
        norms = 5 * 197 * arch.widths[0] * (2 * 12 + 1)  # fvcore counts 5 operations an element of a LayerNorm
        assert round((exact + norms) / 1e9, 2) == published
        assert round(params(arch) / 1e6, 1) == parameters


def test_variants_cost_what_deit_costs() -> None:
    for name, arch in VARIANTS.items():
        size = name.rpartition("_")[2]
        assert macs(arch) == pytest.approx(macs(DEIT[size]), rel=0.02), name
        family = FAMILIES[name.rpartition("_")[0]]
        assert {field: getattr(arch, field) for field in family} == family
        assert params(arch) <= {"tiny": 11.7e6, "small": 25.6e6, "base": 86.6e6}[size], (
            name
        )  # ResNet-18, ResNet-50, DeiT


@pytest.mark.parametrize("seed", range(20))
def test_scale_to_keeps_the_genotype_and_its_ratios(seed: int) -> None:
    rng = random.Random(seed)
    genotype = "-".join("A" + "".join(rng.choices("AS", k=2)) for _ in range(rng.randint(1, 4)))
    head_dim = rng.choice([8, 16, 32])
    heads = sorted(rng.randint(2, 12) for _ in genotype.split("-"))
    arch = Arch(genotype, tuple(head_dim * h for h in heads), head_dim, pooling=rng.choice(["1d", "2d"]))
    assert scale_to(arch, macs(arch)) == arch
    target = macs(arch) * rng.uniform(0.5, 4)
    scaled = scale_to(arch, target)
    assert macs(scaled) == pytest.approx(target, rel=0.02)
    assert replace(scaled, widths=arch.widths, mlp_ratio=arch.mlp_ratio) == arch
    assert all(narrow <= wide for narrow, wide in pairwise(scaled.widths))
    # one factor for all widths, but for rounding to whole heads
    pairs = [*zip(scaled.widths, arch.widths, strict=True)]
    assert max((new - 2 * head_dim) / old for new, old in pairs) <= min(
        (new + 2 * head_dim) / old for new, old in pairs
    )


def test_what_cannot_be_costed_says_so() -> None:
    with pytest.raises(UserError, match=r"no width of AA with head_dim 8 costs 0.001 M MACs: the nearest costs"):
        scale_to(Arch("AA"), 1e3)
    with pytest.raises(UserError, match="a target of 0 MACs is not positive"):
        scale_to(Arch("AA"), 0)
    with pytest.raises(UserError, match="img_size"):
        macs(Arch("AS"), (224, -1))
