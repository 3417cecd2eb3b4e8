"""Token credit: which tokens of an image are updated, and how strongly. Most files are one paper's rule."""
