"""Reports of a run: history, progress bar, plots, trackers, card, pushes."""
