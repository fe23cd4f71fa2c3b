"""One file per published method; what several share stands beside them, underscored. Knows nothing of windows, datasets or mmseg."""

from sfp.methods._method import METHODS, Card, Method, build_method, check_method, list_methods

__all__ = ["METHODS", "Card", "Method", "build_method", "check_method", "list_methods"]
