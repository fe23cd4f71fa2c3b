"""Steps on the stitched scores that know the pixels, one file each."""
