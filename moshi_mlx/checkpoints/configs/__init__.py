"""Configuration files, Kyutai's and Hugging Face's, as the fields of our configs and back."""
