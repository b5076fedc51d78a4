"""What turns the heads of a network into answers, and measures them; NumPy only, for use without torch."""
