"""What became of each error on its way to the root."""
