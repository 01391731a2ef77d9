"""How messages and arrays move: transports, and an engine that needs no Ray and no SuperLink."""
