"""Target-neutral dialects, one file each: core, nn, quant."""
