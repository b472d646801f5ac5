"""Benchmarks of video editing: RefVIE-Bench, OpenVE-Bench, nano-bench and folders of one's own."""
