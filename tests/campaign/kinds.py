"""Every kind of attempts, by the name that `--only` takes, in the order of a whole campaign: the quick ones first."""

from importlib import import_module

from campaign import Kind

KINDS = {
    "recipes": "mutated_recipes:MutatedRecipes",
    "reports": "mutated_reports:MutatedReports",
    "flips-store": "flipped_bits:FlippedStore",
    "flips": "flipped_bits:FlippedBundle",
    "texts": "mutated_texts:MutatedTexts",
    "streams": "streams:Streams",
    "hidden": "hidden_data:HiddenData",
    "checkpoints": "mutated_checkpoints:MutatedCheckpoints",
    "bundles": "mutated_bundles:MutatedBundles",
    "faults": "faulted_writes:FaultedWrites",
    "concurrency": "concurrency:Concurrency",
    "kills": "killed_runs:KilledRuns",
}


def kind_of(name: str) -> Kind:
    """A kind by its name."""
    module, _, of = KINDS[name].partition(":")
    kind: Kind = getattr(import_module(module), of)()
    return kind
