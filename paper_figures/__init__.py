"""The figures of the paper, one module each: `python -m paper_figures.gallery` draws them."""
