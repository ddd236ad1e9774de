"""What few calls are worth: the same texts decoded in every way of asking, over an emulated network, side by side."""
