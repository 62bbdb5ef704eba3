"""Images in, tasks out."""

from promptcl.data.images import ArraySource, FileSource, ImageSet, Source, concat
from promptcl.data.inputs import labelled, unlabelled
from promptcl.data.scenario import SCENARIOS, Scenario, make_stream
from promptcl.data.splits import Domain, Split, load_domains, load_split
from promptcl.data.stream import Stream, Task, class_incremental, domain_incremental

__all__ = [
    "SCENARIOS",
    "ArraySource",
    "Domain",
    "FileSource",
    "ImageSet",
    "Scenario",
    "Source",
    "Split",
    "Stream",
    "Task",
    "class_incremental",
    "concat",
    "domain_incremental",
    "labelled",
    "load_domains",
    "load_split",
    "make_stream",
    "unlabelled",
]
