"""From chunks of audio to segments of text: requests to the model, checks of its results, and what is done with them."""
