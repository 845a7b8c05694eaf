"""From chunks of audio to segments of text: requests to the model, and the checks and joining of its results."""
