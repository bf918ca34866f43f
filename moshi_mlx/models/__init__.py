"""What a Moshi is: weights and pure functions, without files, devices or conversations."""
