"""Read images of any kind, and cut them into the tasks of a stream."""

from promptcl.data.files import FileSource
from promptcl.data.images import ArraySource, ImageSet, Source, concat
from promptcl.data.inputs import ImageLike, ImagesLike, labelled, unlabelled
from promptcl.data.scenario import make_stream
from promptcl.data.splits import Domain, Split, load_domains, load_split
from promptcl.data.stream import SCENARIOS, Scenario, Stream, Task, class_incremental, domain_incremental

__all__ = [
    "SCENARIOS",
    "ArraySource",
    "Domain",
    "FileSource",
    "ImageLike",
    "ImageSet",
    "ImagesLike",
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
