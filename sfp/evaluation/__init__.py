"""Exact evaluation.

Configs, counts, the grid, where a figure comes from, tables. Needs mmsegmentation.
"""
