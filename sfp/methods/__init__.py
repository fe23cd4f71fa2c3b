"""One file per published method.

What several share is underscored. Knows no windows' places, datasets or mmseg.
"""

from sfp.methods._method import (
    METHODS,
    Changes,
    Method,
    build_method,
    check_method,
    list_methods,
)

__all__ = ["METHODS", "Changes", "Method", "build_method", "check_method", "list_methods"]
