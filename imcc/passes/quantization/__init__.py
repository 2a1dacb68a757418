"""Weight quantisation: grids, calibration streams over blocks, initialisation and rounding."""
