"""What a run tells: history, progress bar, plots, trackers, card."""
