"""docs/api.md: `api_head.txt`, and then the public functions and classes as their docstrings tell them (griffe2md).

python docs/make_api.py > docs/api.md
"""

import re
import subprocess
import sys
from pathlib import Path

import griffe
from griffe2md import default_config, render_object_docs

ROOT = Path(__file__).resolve().parent.parent
PLACES = (
    "recipes.config.loader.load_recipe",
    "recipes.engine.runner.run",
    "recipes.engine.plan.plan",
    "recipes.config.recipe.Recipe.from_dict",
    "recipes.engine.api.run_stage",
    "recipes.engine.api.evaluate",
    "recipes.engine.api.benchmark",
    "recipes.engine.api.gate",
    "recipes.engine.api.compare",
    "recipes.engine.api.verify",
    "recipes.engine.api.sensitivity",
    "recipes.engine.benchmark.Result",
    "recipes.engine.compare.SideBySide",
    "recipes.engine.rejudge.Judged",
    "compress.errors.DemitasseError",
    "evaluation.report.Report",
    "evaluation.report.Row",
    "recipes.runs.report_file.read_report",
    "evaluation.gate.Limit",
    "export.bundle.BundleSummary",
    "export.runtime.model.OnnxCausalLM",
    "compress.checkpoints.folder.inspect_checkpoint",
    "compress.stage.Stage",
    "compress.stage.StageInput",
    "evaluation.quality.custom_metrics.TokenMetric",
)
"""What a pipeline may rely on."""

SIGNATURE = "```py"
"""What fences a signature, which is not code to run."""


def main() -> None:
    """Print the page."""
    loader = griffe.GriffeLoader(docstring_parser=griffe.Parser.google, search_paths=[ROOT])
    for package in dict.fromkeys(place.partition(".")[0] for place in PLACES):
        loader.load(package)
    short = {"show_root_members_full_path": False, "show_object_full_path": False, "summary": False}
    config = {
        **default_config,
        **short,
        "members_order": "source",
        "line_length": 100,
        "filters": ["!^_", "!^model_config$"],
    }
    parts = [(ROOT / "docs" / "api_head.txt").read_text(encoding="utf-8").rstrip()]
    for place in PLACES:
        told = render_object_docs(loader.modules_collection[place], config=config)
        told = re.sub(r"\[([^\]]+)\]\(#[^)]*\)", r"\1", re.sub(r"</?code>", "`", told))
        parts.append(told.replace("```python", SIGNATURE).strip())
    page = re.sub(r"\n{3,}", "\n\n", "\n\n".join(parts)) + "\n"
    ruff = [sys.executable, "-m", "ruff", "format", "--stdin-filename", "docs/api.md", "-"]
    sys.stdout.write(subprocess.run(ruff, input=page, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
