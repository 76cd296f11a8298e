"""When a model is trained again: its data changed, or production drifted away from them."""
