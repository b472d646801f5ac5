"""The report of one or several runs: a page, its clips, and the same for other programs."""
