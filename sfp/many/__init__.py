"""Many pictures: where they come from, one machine's processes or Ray's actors that segment them,
and what is done. Imports torch only where pictures are read and segmented.
"""
