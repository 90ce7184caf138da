"""The network, as the recipe's tables say: embeddings, one encoder, a decoder, and what flows through them."""
