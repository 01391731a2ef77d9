"""How the weights that come with fedta were trained."""
