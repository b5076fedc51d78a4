"""Everything a deployed network needs: programs, files, the NumPy reference and the native engine. Never torch."""
