"""What a trained model is asked: to score, to rank, to write."""
