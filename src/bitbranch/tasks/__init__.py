"""What networks' outputs mean, and how good they are: NumPy alone, for those who run networks and never train them."""
