"""Pages for people: a report of a run, and a place to accept and reject samples."""
