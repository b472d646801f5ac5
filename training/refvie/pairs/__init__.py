"""Editing pairs: what they are, and the tables that they are read from."""
