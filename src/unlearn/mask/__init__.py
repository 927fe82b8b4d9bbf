"""Weight masks: scores, selection, files, and what made a mask."""
