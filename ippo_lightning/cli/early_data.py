"""Data before the model: what is wrong with a user's files shows before a model is loaded, which may take minutes."""

from __future__ import annotations

import pydoc
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import Namespace


def early_data(given: Any) -> Any:
    """Return the data module of an experiment with the rows of its task read; None where it is built with the rest.

    Only questions of files on this machine are read early. Another task may draw at random, where the order matters;
    and what is downloaded is downloaded by one process of each machine first.

    Args:
        given: the parsed section `data`, or None.

    Raises:
        UserError: the files are missing, a row does not fit, or there are too few rows.
    """
    if not _reads_questions(given):
        return None

    from jsonargparse import ArgumentParser, Namespace
    from lightning import LightningDataModule
    from lightning.pytorch.utilities.seed import isolate_rng

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    # the weights of a new model are drawn after this, from the stream as it was
    with isolate_rng():
        data = parser.instantiate(Namespace(data=given)).data
        if not data.task.is_local:
            return None
        data.setup()
    return data


def _reads_questions(given: Any) -> bool:
    from ippo_lightning.data import TextDataModule
    from ippo_lightning.tasks import QuestionTask

    task = given.get("init_args.task") if _is_object(given, TextDataModule) else None
    return _is_object(task, QuestionTask)


def _is_object(value: Any, wanted: type) -> bool:
    """Return whether a parsed value describes an object of exactly this class."""
    path = value.get("class_path") if isinstance(value, _namespace()) else None
    return isinstance(path, str) and pydoc.locate(path) is wanted


def _namespace() -> type[Namespace]:
    from jsonargparse import Namespace

    return Namespace
