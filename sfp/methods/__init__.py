"""One file per published method. Knows nothing of windows, datasets or mmsegmentation."""

from sfp.methods.method import METHODS, Method, build_method, check_method, list_methods

__all__ = ["METHODS", "Method", "build_method", "check_method", "list_methods"]
