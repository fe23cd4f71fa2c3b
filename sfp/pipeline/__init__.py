"""From images to label maps: windows, stitching, decoding, PAMR, and the pipeline that joins them."""

from sfp.pipeline.pipeline import Pipeline, Protocol, Task
from sfp.pipeline.vocabulary import Vocabulary

__all__ = ["Pipeline", "Protocol", "Task", "Vocabulary"]
