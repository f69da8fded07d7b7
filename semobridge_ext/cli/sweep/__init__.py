"""Which methods work on which models, found out on small random models of the real architectures."""
