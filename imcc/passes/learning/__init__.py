"""What passes ask about functions that adapt their weights."""
