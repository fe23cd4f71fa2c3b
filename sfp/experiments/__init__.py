"""Ablation tables of the papers, probes of layers, and outliers whose truth is known."""
