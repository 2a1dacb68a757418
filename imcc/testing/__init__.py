"""For tests of imcc and of outside plugins: golden files, example modules of ops, strategies."""
