"""What is kept as data to train on, without what is in a benchmark."""
