"""A toy world with known truth, and the small model that is trained in it from nothing."""
