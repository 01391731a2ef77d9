"""Task vectors: arithmetic, measurements and figures."""
