"""`make bench-results`: run the published jobs over seeds and rewrite the README's results between its markers.

A job that is done is kept in .fedray/results and not run again, so an interrupted call goes on where it stopped.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".fedray" / "results"
SEEDS = "0..2"
JOBS = {  # job -> what its paper reports, HR@10 and NDCG@10
    "pfedrec_ml100k_paper": "0.7162 / 0.4344",
    "pfedrec_ml100k_clean": "",
    "pfedrec_amazon_paper": "0.6008 / 0.3912",
    "pfedrec_amazon_paper_tuned": "0.6008 / 0.3912",
    "pfedrec_amazon_clean": "",
    "fcf_ml100k_clean": "",
}
CONTROLS = ("random", "popularity", "local_only", "ease")


def summary(job: str) -> dict:
    """The family's summary, from disk or from a run."""
    file = KEPT / f"{job}.json"
    if not file.is_file():
        quiet = ["tracking.backend=none", "runtime.executor=serial", "evaluation.local_only=true"]
        sets = [part for s in quiet for part in ("--set", s)]
        command = [sys.executable, "-m", "fedray.cli", "train", f"jobs/{job}.yaml", *sets]
        subprocess.run([*command, "--seeds", SEEDS, "--summary", str(file)], cwd=ROOT, check=True)
    return json.loads(file.read_text())


def row(job: str, metric: str, ranking: str, found: dict, published: str) -> str:
    """One line of the table."""
    hr, ndcg = f"{metric}hr_at_10", f"{metric}ndcg_at_10"
    mine = " / ".join(f"{found['test'][k]:.4f} ± {found['std'][k]:.4f}" for k in (hr, ndcg))
    cells = [" / ".join(f"{found['control'][c][k]:.3f}" for k in (hr, ndcg)) for c in CONTROLS]
    return f"| `{job}` | {ranking} | {mine} | {published} | {' | '.join(cells)} |"


def table() -> str:
    """All jobs, each in its protocol's own ranking and, under clean, among 99 candidates too."""
    head = ["job", "ranking", "HR@10 / NDCG@10", "published", "random", "popularity", "local-only", "EASE (central)"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for job, published in JOBS.items():
        found = summary(job)
        both = "sampled99_hr_at_10" in found["test"]
        lines.append(row(job, "", "full" if both else "99 candidates", found, published))
        if both:
            lines.append(row(job, "sampled99_", "99 candidates", found, published))
    return "\n".join(lines)


def rewrite(text: str, name: str, body: str) -> str:
    """`text` with what stands between the markers of `name` replaced."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = text.split(start)
    return f"{before}{start}\n{body}\n{end}{rest.split(end)[1]}"


def main() -> None:
    """Run what is missing, then write."""
    KEPT.mkdir(parents=True, exist_ok=True)
    readme = ROOT / "README.md"
    readme.write_text(rewrite(readme.read_text(), "results", table()))


if __name__ == "__main__":
    main()
