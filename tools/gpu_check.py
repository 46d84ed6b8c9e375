#!/usr/bin/env python3
"""One call of each CUDA kernel on ragged shapes and a comparison: what gpu_day runs under compute-sanitizer."""

from __future__ import annotations

import torch

from tersor.nn import Int8Linear


def main() -> None:
    """Raises AssertionError where CUDA and CPU differ."""
    torch.manual_seed(0)
    for k, n, rows in ((130, 33, (1, 5, 17, 40)), (1000, 129, (3, 65)), (2048, 70, (16, 130))):
        layer = Int8Linear.from_float(torch.nn.Linear(k, n), activation="gelu")
        inputs = [torch.randn(m, k) for m in rows]
        with torch.no_grad():
            expected = [layer(x) for x in inputs]
            layer.cuda()
            for x, y in zip(inputs, expected, strict=True):
                assert torch.equal(layer(x.cuda()).cpu(), y)


if __name__ == "__main__":
    main()
