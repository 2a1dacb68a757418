"""What each neutral op computes, in torch, differentiable: the reference interpreter."""
