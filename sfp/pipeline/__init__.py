"""From images to label maps: windows, stitching, refinement, decoding."""

from sfp.pipeline.pipeline import Pipeline, Task
from sfp.pipeline.protocol import Protocol
from sfp.pipeline.vocabulary import Vocabulary

__all__ = ["Pipeline", "Protocol", "Task", "Vocabulary"]
