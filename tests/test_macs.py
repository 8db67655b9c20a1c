"""MACs of any network, counted by torch: attention, backward passes, fused kernels."""

import pytest
import timm
import torch
from small_networks import Tiny
from timm.layers import set_fused_attn, use_fused_attn
from torch import nn

from psvit.models.macs import count_macs, explicit_attention


def test_macs_of_deit_tiny():
    C, N = 192, 1 + 14 * 14
    patches = 14 * 14 * (3 * 16 * 16) * C
    projections = N * C * (3 * C) + N * C * C  # query, key and value; output
    attention = 2 * N * N * C  # QK^T and AV, over all heads
    mlp = 2 * N * C * (4 * C)
    head = C * 1000
    by_hand = patches + 12 * (projections + attention + mlp) + head
    assert by_hand == 1_253_683_200
    assert count_macs(lambda: timm.create_model("deit_tiny_patch16_224"), (3, 224, 224)) == by_hand


def test_macs_where_torch_trips_over_parameters_as_inputs():
    # pit hands its position embedding to a module; 0.7 G in its paper
    assert count_macs(lambda: timm.create_model("pit_ti_224"), (3, 224, 224)) == pytest.approx(0.70e9, rel=0.01)


class Attention(nn.Module):
    """Torch's own attention, which has a fused path of its own: 6 tokens of 8 channels."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


class Direct(nn.Module):
    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)[:, None]
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


def test_macs_of_fused_kernels():
    N, C = 6, 8
    assert count_macs(Direct, (C, 2, 3)) == 2 * N * N * C
    assert count_macs(Attention, (C, 2, 3)) == 4 * N * C * C + 2 * N * N * C


def test_macs_of_the_backward_pass():
    hidden, head = 32 * 7, 7 * 5
    assert count_macs(Tiny, (2, 4, 4)) == hidden + head
    # Backward: both weights, and the input of the head; nobody asks for the image's gradient.
    assert count_macs(Tiny, (2, 4, 4), train=True) == (hidden + head) + (hidden + 2 * head)


@pytest.mark.parametrize("fused", [True, False])
def test_explicit_attention_restores_the_switch(fused):
    before = use_fused_attn()
    try:
        set_fused_attn(fused)
        with explicit_attention():
            assert not use_fused_attn()
            assert not torch.backends.mha.get_fastpath_enabled()
        with pytest.raises(RuntimeError):  # restored after an exception too
            count_macs(Tiny, (3, 5, 5))
        assert use_fused_attn() == fused
        assert torch.backends.mha.get_fastpath_enabled()
    finally:
        set_fused_attn(before)
