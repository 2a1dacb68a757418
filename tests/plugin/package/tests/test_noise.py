"""What is sampled has the moments that are stated."""

import torch

from imcc.backends.crossbar.noise import CellScale
from imcc_example.noise import LognormalKeys, LognormalWrite

CELL = CellScale(g_max_us=1.0, g_min=0.1)


def test_moments_agree_with_samples():
    model = LognormalWrite.create(LognormalKeys(model="lognormal_write", sigma_log=0.2), CELL)
    g = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(200_000, 3, dtype=torch.float64, generator=generator)
    samples = model.sample(g, normal)
    mean, variance = model.moments(g)
    error = (variance / len(samples)).sqrt()
    assert ((samples.mean(0) - mean).abs() < 4 * error).all()
    assert torch.allclose(samples.var(0), variance, rtol=0.03)
