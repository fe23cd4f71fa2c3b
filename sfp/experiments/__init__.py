"""Ablation tables of the papers, and probes of layers."""
