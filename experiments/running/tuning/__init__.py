"""`tune`: what a search tries, the search itself, and what it leaves behind."""
