"""What the papers and this project tried: ablation tables, probes of layers, outliers whose truth is known."""
