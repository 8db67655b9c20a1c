"""The matrix-product peak of a device."""

from __future__ import annotations

import statistics

import torch

from psvit.latency.timing import MIN_SECONDS, Stopwatch

PEAK_SECONDS = 0.25
"""`matmul_peak` skips products that would take longer than this."""
PEAK_SHAPES = (
    (512, 512, 512),
    (1024, 1024, 1024),
    (16 * 197, 768, 768),  # the projection of a ViT-B
    (2048, 2048, 2048),
    (64 * 197, 768, 3072),
    (4096, 4096, 4096),
    (8192, 8192, 8192),
)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The fastest plain matrix product on the device, in GMAC/s.

    Several shapes, square and tall, are timed seven times each, with a preallocated output; the median of the three
    best timings counts. Large products are skipped if they would take long.
    """
    generator = torch.Generator().manual_seed(0)
    peak = 0.0
    for m, k, n in PEAK_SHAPES:
        gmacs = m * k * n / 1e9
        if peak and gmacs / peak > PEAK_SECONDS:
            continue
        a = torch.randn(m, k, generator=generator).to(device, dtype)
        b = torch.randn(k, n, generator=generator).to(device, dtype)
        out = torch.empty(m, n, device=device, dtype=dtype)
        watch = Stopwatch(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, MIN_SECONDS)  # type: ignore[misc]
        watch.warm(2)
        peak = max(peak, gmacs / statistics.median(sorted(watch() for _ in range(7))[:3]))
    return peak
