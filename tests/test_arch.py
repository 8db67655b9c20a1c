"""Arch: the grammar, the rules, the round trips; no torch."""

import pickle
import re
from dataclasses import replace
from math import ceil, nan
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from refusals import refuses

from psvit import Arch, UserError
from psvit.arch.arch import DEFAULT_WIDTHS, parse_genotype
from psvit.arch.variants import VARIANTS, find_arch, with_changes

GRAMMAR = re.compile(r"A[AS]*(-A[AS]*)*")
PREFIX_OF_A_GENOTYPE = re.compile(r"(A[AS]*-)*(A[AS]*)?")

genotypes = st.lists(st.text("AS", max_size=5).map("A".__add__), min_size=1, max_size=4).map("-".join)


@st.composite
def archs(draw: st.DrawFn) -> Arch:
    genotype = draw(genotypes)
    head_dim = draw(st.integers(1, 64))
    heads = draw(st.lists(st.integers(1, 8), min_size=genotype.count("-") + 1, max_size=genotype.count("-") + 1))
    stride = draw(st.integers(1, 16))
    return Arch(
        genotype,
        widths=tuple(head_dim * h for h in heads),
        head_dim=head_dim,
        mlp_ratio=draw(st.floats(1, 8)),
        pooling=draw(st.sampled_from(["1d", "2d"])),
        stride=stride,
        patch_size=stride + 2 * draw(st.integers(0, 4)),
        class_token=draw(st.sampled_from([None, False, True])),
        qkv_bias=draw(st.booleans()),
        pool_order=draw(st.sampled_from(["conv-pool", "pool-conv"])),
        pool_conv=draw(st.sampled_from(["full", "depthwise"])),
        pool_kernel=draw(st.sampled_from([1, 3, 5])),
        pool_op=draw(st.sampled_from(["max", "avg", "stride"])),
    )


@st.composite
def mutated_genotypes(draw: st.DrawFn) -> str:
    """A genotype with one letter replaced, put in or taken out."""
    genotype = draw(genotypes)
    at = draw(st.integers(0, len(genotype)))
    letter = draw(st.sampled_from(["A", "S", "-", "a", "s", " ", "_", "P", ""]))
    return genotype[:at] + letter + genotype[at + draw(st.integers(0, 1)) :]


@given(genotypes)
def test_every_genotype_round_trips(genotype: str) -> None:
    stages = parse_genotype(genotype)
    assert "-".join(stages) == genotype
    arch = Arch(genotype)
    assert arch.stages == stages
    assert arch.depth == len(genotype.replace("-", ""))
    assert arch.widths == DEFAULT_WIDTHS[: len(stages)]


@given(mutated_genotypes())
def test_every_string_outside_the_grammar_is_refused_at_its_first_wrong_position(text: str) -> None:
    assume(text and not GRAMMAR.fullmatch(text))
    first_wrong = next((n for n in range(1, len(text) + 1) if not PREFIX_OF_A_GENOTYPE.fullmatch(text[:n])), len(text))
    with pytest.raises(UserError, match=rf"position {first_wrong}:"):
        Arch(text)


def test_a_wrong_genotype_names_the_rule() -> None:
    refuses(
        Arch,
        (
            ("", "is empty: write one letter a layer"),
            (None, "None is empty"),
            ("SA", "position 1: a stage starts with A, because there is no map to share yet"),
            ("A-SA", "position 3: a stage starts with A, because a map cannot cross a pooling"),
            ("-A", "position 1: a stage holds at least one layer"),
            ("A--A", "position 3: a stage holds at least one layer"),
            ("AS-", "position 3: '-' stands between two layers"),
            ("ABA", "position 2: 'B' is not A .attend., S .share. or - .pool."),
        ),
    )


@given(archs())
def test_an_arch_round_trips(arch: Arch) -> None:
    for twin in (
        Arch.from_json(arch.to_json()),
        Arch.from_dict(arch.to_dict()),
        Arch(**arch.to_dict()),
        pickle.loads(pickle.dumps(arch)),
    ):
        assert twin == arch
        assert hash(twin) == hash(arch)
    assert len({arch, replace(arch)}) == 1
    assert "\n" not in arch.to_json()
    assert len(str(arch)) < 60


@given(archs(), st.integers(1, 300), st.integers(1, 300))
def test_grids_round_up(arch: Arch, height: int, width: int) -> None:
    rows, columns = ceil(height / arch.stride), ceil(width / arch.stride)
    for stage, grid in enumerate(arch.grids((height, width))):
        assert grid == (rows, columns)
        if arch.pooling == "1d":
            rows, columns = 1, ceil(rows * columns / 2)
        else:
            rows, columns = ceil(rows / 2), ceil(columns / 2)
        assert arch.strides[stage] == arch.stride * 2**stage


def test_defaults_and_what_follows_from_them() -> None:
    arch = Arch("ASAS-ASSA-AS")
    assert str(arch) == "ASAS-ASSA-AS 2d 192-256-384 /16"
    assert arch.num_heads == (3, 4, 6)
    assert arch.hidden_widths == (768, 1024, 1536)
    assert arch.strides == (16, 32, 64)
    assert (arch.class_token, Arch("A", pooling="1d").class_token) == (False, True)
    assert str(Arch("A-A", widths=(64, 128), pooling="1d", stride=12)) == "A-A 1d 64-128 /12"
    assert Arch("AA", mlp_ratio=2) == Arch("AA", mlp_ratio=2.0)


def test_a_wrong_value_is_named() -> None:
    refuses(
        lambda changes: Arch(**{"genotype": "AS-A", **changes}),
        (
            ({"widths": (64,)}, r"has 1 entries, but genotype 'AS-A' has 2 stages: give one width per stage"),
            ({"widths": (64, 100)}, r"width 100 of stage 2 is not a multiple of head_dim 64"),
            ({"widths": (64, -64)}, r"width of stage 2 -64 is not a positive whole number"),
            ({"widths": (64.0, 64)}, r"width of stage 1 64.0 is not a positive whole number"),
            ({"widths": "64"}, r"widths '64' is not a list of whole numbers"),
            ({"head_dim": 0}, r"head_dim 0 is not a positive whole number"),
            ({"mlp_ratio": 0}, r"mlp_ratio 0.0 is not a positive number"),
            ({"mlp_ratio": nan}, r"mlp_ratio nan is not"),
            ({"mlp_ratio": "4"}, r"mlp_ratio '4' is not a positive number"),
            ({"pooling": "3d"}, r"pooling '3d' is not one of 1d, 2d"),
            ({"patch_size": "16"}, r"patch_size '16' is not"),
            ({"stride": 15}, r"stride 15 does not fit patch_size 16: .* differs from it by an even number"),
            ({"class_token": 1}, r"class_token 1 is not true, false or left out"),
            ({"qkv_bias": "no"}, r"qkv_bias 'no' is not true or false"),
            ({"pool_order": "pool"}, r"pool_order 'pool' is not one of conv-pool, pool-conv"),
            ({"pool_kernel": 2}, r"pool_kernel 2 is even"),
            ({"windows": (14,)}, r"windows \(14,\) has 1 entries, but genotype 'AS-A' has 2 stages: give one"),
            ({"windows": (14, -1)}, r"window of stage 2 -1 is not a whole number of tokens, or 0 for none"),
            ({"windows": "14"}, r"windows '14' is not a list of whole numbers, one per stage"),
            ({"windows": (14, 0), "pooling": "1d"}, r"divide a grid, which a sequence \(pooling 1d\) does not have"),
            ({"windows": (14, 0), "class_token": True}, r"divide a grid, which a class token does not have"),
            ({"stem": "convs"}, r"stem 'convs' is not one of patch, conv"),
            ({"stem": True}, r"stem True is not one of patch, conv"),
            ({"stem": "conv", "patch_size": 12}, r"stride 12 does not fit stem conv, which halves"),
            ({"stem": "conv", "patch_size": 1}, r"stride 1 does not fit stem conv"),
            ({"stem": "conv", "patch_size": 16, "stride": 8}, r"patch_size 16 and stride 8 differ, but stem conv"),
            (
                {"stem": "conv", "patch_size": 16, "widths": (56, 64), "head_dim": 8},
                r"width 56 of stage 1 does not fit stem conv of stride 16, .* take a multiple of 8, at least 64",
            ),
            ({"stem": "conv", "patch_size": 4, "widths": (8, 64), "head_dim": 8}, r"take a multiple of 2, at least 16"),
        ),
    )


def test_wrong_json_is_named() -> None:
    refuses(
        Arch.from_json,
        (
            ("{", "not an Arch in JSON"),
            ("[]", "expected an object, found list"),
            ("{}", "an Arch needs a genotype"),
            ('{"genotype": "AS", "width": [64]}', "unknown Arch field 'width': the fields are genotype, widths"),
            ('{"genotype": "SA"}', "position 1"),
        ),
    )


def test_a_family_is_a_genotype_with_its_pooling_or_its_tiny_variant() -> None:
    assert find_arch("psvit_2d_tiny", genotype="AS-A").widths == VARIANTS["psvit_2d_tiny"].widths[:2]
    for pooling in ("1d", "2d"):
        family = f"psvit_{pooling}"
        widths = {"widths": (32, 64), "head_dim": 16}
        assert find_arch(family, genotype="AS-A") == Arch("AS-A", pooling=pooling)
        assert find_arch(family, genotype="AS-A", pooling=pooling, **widths) == Arch("AS-A", pooling=pooling, **widths)
        tiny = VARIANTS[f"psvit_{pooling}_tiny"]
        assert find_arch(family) == tiny
        assert find_arch(family, genotype=None, patch_size=8) == replace(tiny, patch_size=8, stride=8)
    with pytest.raises(UserError, match="position 1"):
        find_arch("psvit_2d", genotype="psvit_2d")
    with pytest.raises(UserError, match="psvit_1d pools in 1d: leave out --pooling 2d"):
        find_arch("psvit_1d", pooling="2d")


@pytest.mark.parametrize(
    ("later", "shown"), [({"windows": (14, 0)}, " w14-0"), ({"stem": "conv"}, " conv"), ({"pool_norm": True}, " norm"),
                         ({"mlp": "local"}, " local")],
)  # fmt: skip
def test_later_fields_are_described_where_there_are_some(later: dict[str, Any], shown: str) -> None:
    plain, arch = Arch("AS-A", patch_size=8), Arch("AS-A", patch_size=8, **later)
    for twin in (Arch.from_json(arch.to_json()), eval(repr(arch))):
        assert (twin, hash(twin)) == (arch, hash(arch))
    assert str(arch) == f"{plain}{shown}" == f"AS-A 2d 192-256 /8{shown}"
    assert not {*later} & {*plain.to_dict()}
    kept = {name: value for name, value in later.items() if name in ("stem", "mlp")}
    assert arch.plain() == replace(plain.plain(), **kept)  # a DeiT but for these


def test_with_changes_keeps_what_belongs_together() -> None:
    arch = Arch("A-A-A", windows=(14, 7, 0), stride=8)
    assert with_changes(arch, patch_size=4).stride == 4
    assert with_changes(arch, genotype=None) == arch
    assert with_changes(arch, genotype="AS-A").windows == (14, 7)
    assert with_changes(arch, pooling="1d").class_token is True
    assert with_changes(arch, pooling="1d").windows == with_changes(arch, class_token=True).windows == ()
    assert with_changes(arch, genotype="A-A-A-A", widths=(64,) * 4).windows == (14, 7, 0, 0)
    with pytest.raises(UserError, match=r"has 4 stages, but A-A-A .* has 3 widths"):
        with_changes(arch, genotype="A-A-A-A")
    with pytest.raises(UserError, match="unknown Arch field 'depth'"):
        with_changes(arch, depth=3)
