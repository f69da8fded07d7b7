"""Half the Kullback-Leibler divergence of two distributions both ways, from their logits."""
