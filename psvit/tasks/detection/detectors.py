"""Settings -> a detector: torchvision's Mask R-CNN, Faster R-CNN or RetinaNet on a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from psvit.tasks.detection.detector_config import DetectorConfig
from psvit.tasks.detection.pasting import AlignedRoIHeads, PastingTransform
from psvit.tasks.detection.pyramid import Backbone

RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the anchors."""

OCTAVE = 3
"""Number of anchor sizes per level in RetinaNet: 1, 2^(1/3), 2^(2/3) (Lin et al. 2017, section 4)."""


class Anchors(AnchorGenerator):
    """torchvision's anchors, at the given strides.

    torchvision derives strides from the sides of image and map, which is wrong if the map was rounded up.

    Args:
        sizes: anchor sizes of each level in pixels.
        strides: stride of each level in pixels.
    """

    def __init__(self, sizes: Sequence[tuple[float, ...]], strides: Sequence[int]) -> None:
        super().__init__(tuple(sizes), (RATIOS,) * len(strides))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Images and their maps (B, C, h, w) by level -> for each image (anchors of all levels, 4) in pixels."""
        first = feature_maps[0]
        self.set_cell_anchors(first.dtype, first.device)
        steps = [[torch.tensor(stride, device=first.device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([list(one.shape[-2:]) for one in feature_maps], steps))
        return [anchors for _ in image_list.image_sizes]


class Retina(RetinaNet):
    """torchvision's RetinaNet that never predicts class 0, since labels start from 1."""

    def postprocess_detections(
        self, head_outputs: dict[str, list[Tensor]], anchors: list[list[Tensor]], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Logits (B, anchors, classes) and boxes of each level -> detections in each image."""
        known = torch.arange(head_outputs["cls_logits"][0].shape[-1], device=head_outputs["cls_logits"][0].device) > 0
        logits = [level.where(known, -torch.inf) for level in head_outputs["cls_logits"]]
        found: list[dict[str, Tensor]] = super().postprocess_detections(
            {**head_outputs, "cls_logits": logits}, anchors, image_shapes
        )
        return found


def build_detector(
    backbone: Backbone, config: DetectorConfig, num_classes: int, mean: Sequence[float], std: Sequence[float]
) -> nn.Module:
    """Build torchvision's detector on a backbone.

    Args:
        backbone: images -> maps.
        config: settings with defaults filled in, see `DetectorConfig.filled`.
        num_classes: classes of objects, without the background, which is class 0 of the detector.
        mean: of each channel, for pixels in 0..1; std: of each channel.

    Returns:
        A model. In training: lists of images (C, H, W) in 0..1 and of targets (boxes (n, 4) in pixels, labels (n,) from
        1, masks (n, H, W)) -> a dict of losses. In evaluation: a list of images -> a list of dicts of boxes, labels,
        scores and masks (n, 1, H, W) bool.
    """
    scale, strides = float(config.anchor_scale or 8), backbone.strides
    common: dict[str, Any] = {
        "min_size": config.short_side,
        "max_size": config.long_side,
        "image_mean": list(mean),
        "image_std": list(std),
        "size_divisible": min(strides[-2], 128),  # so that all maps but the last halve exactly
    }
    if config.detector == "retinanet":
        octaves = [tuple(scale / 2 * stride * 2 ** (part / OCTAVE) for part in range(OCTAVE)) for stride in strides]
        retina = Retina(
            backbone,
            num_classes + 1,
            anchor_generator=Anchors(octaves, strides),
            score_thresh=config.score_threshold,
            detections_per_img=config.detections,
            topk_candidates=int(config.proposals or 1000),
            **common,
        )
        return _in_float32(retina, "head")
    boxes = _box_stage(backbone, config, num_classes, scale)
    if config.detector == "faster_rcnn":
        return _in_float32(FasterRCNN(backbone, **boxes, **common), "rpn.head", "roi_heads.box_predictor")
    channels, layers = backbone.out_channels, int(config.mask_layers or 4)
    masks = {
        "mask_roi_pool": _pooler(strides, scale, 14),
        "mask_head": MaskRCNNHeads(channels, (channels,) * layers, dilation=1, norm_layer=LayerNorm2d),
        "mask_predictor": MaskRCNNPredictor(channels, channels, num_classes + 1),
    }
    model = MaskRCNN(backbone, **boxes, **masks, **common)
    model.transform = PastingTransform(**common)
    heads = model.roi_heads
    model.roi_heads = AlignedRoIHeads(
        heads.box_roi_pool, heads.box_head, heads.box_predictor, 0.5, 0.5, heads.fg_bg_sampler.batch_size_per_image,
        heads.fg_bg_sampler.positive_fraction, None, heads.score_thresh, heads.nms_thresh, heads.detections_per_img,
        **masks,
    )  # fmt: skip
    return _in_float32(model, "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor")


def _box_stage(backbone: Backbone, config: DetectorConfig, num_classes: int, scale: float) -> dict[str, Any]:
    """Arguments of Faster R-CNN and Mask R-CNN: proposals and box head."""
    kept, rois, width = int(config.proposals or 1000), int(config.rois or 512), int(config.head_width or 1024)
    return {
        "rpn_anchor_generator": Anchors([(scale * stride,) for stride in backbone.strides], backbone.strides),
        "rpn_pre_nms_top_n_train": 2 * kept,
        "rpn_pre_nms_top_n_test": kept,
        "rpn_post_nms_top_n_train": 2 * kept,
        "rpn_post_nms_top_n_test": kept,
        "rpn_batch_size_per_image": min(256, 2 * rois),
        "box_roi_pool": _pooler(backbone.strides, scale, 7),
        "box_head": TwoMLPHead(backbone.out_channels * 7**2, width),
        "box_predictor": FastRCNNPredictor(width, num_classes + 1),
        "box_score_thresh": config.score_threshold,
        "box_detections_per_img": config.detections,
        "box_batch_size_per_image": rois,
    }


def _pooler(strides: Sequence[int], scale: float, side: int) -> MultiScaleRoIAlign:
    """RoI align on maps of these strides; the last map is left out, since only the largest anchors use it."""
    levels = [str(level) for level in range(len(strides) - 1)]
    # torchvision's 224 px for anchors of 8 strides
    pool = MultiScaleRoIAlign(levels, side, 2, canonical_scale=round(28 * scale))
    # torchvision would guess the strides from the first image, wrongly if it is small and padded
    pool.scales = [1 / stride for stride in strides[:-1]]
    pool.map_levels = initLevelMapper(
        int(log2(strides[0])), int(log2(strides[-2])), pool.canonical_scale, pool.canonical_level
    )
    return pool


def _in_float32(model: nn.Module, *parts: str) -> nn.Module:
    """`model` with float32 outputs of these parts also under autocast.

    torchvision computes boxes in their dtype, and bfloat16 has steps of half a pixel from 64 pixels, of four from 512.
    """
    for part in parts:
        model.get_submodule(part).register_forward_hook(lambda module, inputs, output: _float(output))
    return model


def _float(output: Any) -> Any:
    if isinstance(output, dict):
        return {name: _float(value) for name, value in output.items()}
    return output.float() if isinstance(output, Tensor) else type(output)(map(_float, output))
