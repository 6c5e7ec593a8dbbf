"""What an accuracy rests on, in words: labelled images, captions seen in training, or neither."""

from collections.abc import Sequence

from harness.conditions import DENSE, PROMPTS
from harness.datasets import list_datasets, shipped_facts
from harness.datasets.rooted import RootedDataset
from harness.records import Record
from zoo.predictor import tower_name
from zoo.sizes import SIZES

EMBEDDED = "s14"  # the size whose text tower we trained


def captions(dataset: str) -> str:
    """Say which of a dataset's class captions the embedded text tower saw in training.

    Only where it saw none is a text classifier zero-shot. Of what isn't shipped nothing is said.
    """
    facts = shipped_facts(dataset)
    if isinstance(facts, RootedDataset):
        return "text classifier"
    trained = facts.captions_seen
    if not any(trained):
        return "zero-shot: no class caption seen in text training"
    if all(trained):
        return "text classifier: all class captions seen in text training"
    return f"text classifier: {sum(trained)} of {len(trained)} class captions seen in text training"


def protocol(record: Record) -> str:
    """Say how the images of a record were classified."""
    if record.shots:
        return f"{shots_of(record)}, {learned(record)}"
    if record.tag in SIZES[EMBEDDED].tags and record.dataset in list_datasets():
        return captions(record.dataset)
    return "text classifier"


def tower_of(record: Record) -> str:
    """Return the name of the dense tower of a record, with its weight tag."""
    dense = record.model
    if record.method != DENSE:
        dense = dense.removesuffix(f"_{record.method}{round(100 * record.keep)}")
    return tower_name(dense, record.tag)


def shots_of(record: Record) -> str:
    """Say how many shots there were."""
    return f"{record.shots} {'shot' if record.shots == 1 else 'shots'}"


def learned(record: Record) -> str:
    """Say what was learned from the shots of a record."""
    if record.tuning in PROMPTS:
        return f"{PROMPTS[record.tuning]} ({record.prompt_tokens})"
    return "linear probe"


def seeds(records: Sequence[Record]) -> str:
    """Say of how many seeds a row is the mean; nothing of one."""
    return f"; mean of {len(records)} seeds" if len(records) > 1 else ""
