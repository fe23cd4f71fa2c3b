"""The web page: ``sfp page``."""
