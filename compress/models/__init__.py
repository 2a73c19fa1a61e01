"""What a model is made of: families, block linears, blocks one by one, what they are fed."""
