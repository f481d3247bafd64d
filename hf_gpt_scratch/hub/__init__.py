"""Repository folders: made, loaded, pushed to the Hub."""
