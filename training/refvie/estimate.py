"""What a run of another size would cost, from the seconds that each stage took for a sample of this one."""

from __future__ import annotations

from collections.abc import Sequence

from . import stages
from .config import MODEL_STAGES, Config
from .ledger import Ledger


def estimate(book: Ledger, given: Config, pairs: int, gpus: Sequence[int]) -> str:
    """A table in Markdown: by stage the share of the samples that reach it, seconds a sample, and the whole in hours.

    The seconds are those of one copy of the model on the machine that ran it. Ingest has none: its hours are those of
    one core, and it takes as many cores as are to keep up.

    Args:
        book: of a run in which some samples went through all stages; ValueError if none did.
        pairs: of the larger run. gpus: numbers of copies of each model that work at once.
    """
    if pairs < 1 or any(count < 1 for count in gpus):
        raise ValueError("Give at least 1 pair, and numbers of GPUs of at least 1.")
    total = book.db.execute("SELECT count(*) FROM samples WHERE listed = ?", (book.run,)).fetchone()[0]
    lines = [
        f"For {pairs:,} pairs, by {total:,} measured.",
        "",
        "| stage | by | reach it | seconds a sample | " + " | ".join(f"hours on {count}" for count in gpus) + " |",
        "|---|---|---|---|" + "---|" * len(gpus),
    ]
    sums = [0.0] * len(gpus)
    for name, stage in stages.plan(given).items():
        arguments: dict = {"run": book.run}
        join = book.join(stage, arguments)
        reached, seconds, model = book.db.execute(
            f'SELECT count("{name}".status), coalesce(avg("{name}".seconds), 0), coalesce(max("{name}".model), \'\')'
            f" FROM samples s {join} WHERE s.listed = :run",
            arguments,
        ).fetchone()
        if not reached:
            raise ValueError(f"No sample of this run has reached {name}; run more pairs first.")
        alone = pairs * reached / total * seconds / 3600
        hours = [alone / count if name in MODEL_STAGES else alone for count in gpus]
        if name in MODEL_STAGES:
            sums = [before + now for before, now in zip(sums, hours)]
        share = f"{100 * reached / total:.0f}%"
        cells = [name, model or "one core", share, f"{seconds:.4f}", *(f"{one:,.1f}" for one in hours)]
        lines.append("| " + " | ".join(cells) + " |")
    kept = book.db.execute("SELECT coalesce(sum(kept), 0) FROM verdicts").fetchone()[0]
    lines += [
        "| all models | | | | " + " | ".join(f"{one:,.1f}" for one in sums) + " |",
        "",
        f"Of these {total:,} pairs {kept:,} were kept, so about {round(pairs * kept / total):,} of {pairs:,} would be.",
    ]
    return "\n".join(lines)
