"""What passes that move time into an axis share."""
