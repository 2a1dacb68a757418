"""Runs compiled programs: artifacts on disk, the executor, Monte Carlo trials."""
