"""Rows of editing pairs: where they stand, how they are read, what is wrong with them."""
