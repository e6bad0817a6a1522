"""Where results are kept, and how the README's marked sections are rewritten."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".fedray" / "results"


def rewrite(text: str, name: str, body: str) -> str:
    """`text` with what stands between the markers of `name` replaced."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = text.split(start)
    return f"{before}{start}\n{body}\n{end}{rest.split(end)[1]}"
