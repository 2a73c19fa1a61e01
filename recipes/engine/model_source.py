"""Where a run begins: the model's folder on this machine, what its headers tell, and the key for its content.

A model of the hub is brought here at its pinned commit: safetensors, JSON and tokenizer files, never a pickle and never
code. The commit is its key; a folder's key is a digest over the files that a model is loaded from.
"""

from dataclasses import dataclass
from pathlib import Path

from compress import CheckpointError, FormatName
from compress.checkpoints.folder import LOADED, Checkpoint, outline
from compress.digests import digest_file, digest_of
from compress.stage import first_line
from export.manifest import MANIFEST, bundle_folder, is_bundle, listed
from recipes.config.errors import Locations, raise_problems
from recipes.config.recipe import ModelSource, Recipe

SUFFIXES = (*LOADED, ".safetensors")
"""Endings of all files that a model is loaded from."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What the first stage is given."""

    key: str
    checkpoint: Checkpoint | None
    """None: the recipe starts from nothing."""

    @property
    def folder(self) -> Path | None:
        return None if self.checkpoint is None else self.checkpoint.folder

    @property
    def format(self) -> FormatName:
        return "nothing" if self.checkpoint is None else self.checkpoint.format


NOTHING = Source(key="nothing", checkpoint=None)


def resolve(recipe: Recipe) -> Source:
    """The recipe's model, brought here if it is on the hub, and inspected.

    Raises:
        RecipeError: it cannot be had, or is no checkpoint that can be used.
    """
    if recipe.model is None:
        return NOTHING
    try:
        if recipe.model.folder is not None:
            checkpoint = outline(recipe.model.folder)
            key = checkpoint.digest()
        else:
            checkpoint = _from_hub(recipe.model, recipe.where)
            key = digest_of({"hub": recipe.model.hub, "revision": recipe.model.revision})
    except CheckpointError as error:
        raise_problems([recipe.where.problem(("model",), str(error))])
        raise
    return Source(key=key, checkpoint=checkpoint)


def digest_folder(folder: Path) -> str:
    """sha256 (hex) over names and contents of the files that a checkpoint is loaded from, or of all of a bundle's."""
    if is_bundle(folder):
        bundle = bundle_folder(folder)
        return digest_of({name: digest_file(bundle / name) for name in (*listed(bundle), MANIFEST)})
    return Checkpoint(folder).digest()


def _from_hub(model: ModelSource, where: Locations, *, here: bool = True) -> Checkpoint:
    """The copy that is here already, or else a new one; with a pinned commit they are the same."""
    from huggingface_hub import snapshot_download

    patterns = [f"*{suffix}" for suffix in SUFFIXES]
    assert model.hub is not None
    try:
        folder = snapshot_download(
            model.hub, revision=model.revision, allow_patterns=patterns, ignore_patterns=["*/*"], local_files_only=here
        )
        return outline(Path(folder))
    except Exception as error:  # the client lets errors of a dozen kinds through, its network library's among them
        if here:  # not at all, or only a part of it
            return _from_hub(model, where, here=False)
        if isinstance(error, CheckpointError):
            raise
        way = "without a network, give a folder: --set model=FOLDER"
        raise_problems([where.problem(("model",), f"{model} cannot be had from the hub ({first_line(error)}); {way}")])
        raise
