"""Methods written plainly, as their papers say, to compare with."""

import torch


def plain_mmer(
    base: torch.Tensor, models: list[torch.Tensor], which: int, density: float, scale: float
) -> torch.Tensor:
    """MMER written plainly: a stable sort, one loop, float32."""
    vectors = [(m.float() - base.float()).reshape(-1) for m in models]
    trimmed = []
    for vector in vectors:
        kept = torch.argsort(vector.abs(), descending=True, stable=True)
        cut = torch.zeros_like(vector)
        cut[kept[: max(1, int(density * vector.numel()))]] = 1
        trimmed.append(vector * cut)
    sign = torch.sign(torch.stack(trimmed).sum(0))
    agree = torch.stack([torch.sign(t) == sign for t in trimmed]) & (sign != 0)
    total = (torch.stack(trimmed) * agree).sum(0)
    star = (scale * (total / agree.sum(0).clamp(min=1))).to(base.dtype).float()
    own = vectors[which]
    keep = (torch.sign(own) == torch.sign(star)) & (star != 0) & (own.abs() >= 0.5 * star.abs())
    return (base.float() + (star * keep).reshape(base.shape)).to(base.dtype)
