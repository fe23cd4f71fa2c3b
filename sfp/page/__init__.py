"""The web page: ``python -m sfp.page``."""
