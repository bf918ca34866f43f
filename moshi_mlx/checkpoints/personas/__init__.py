"""What a PersonaPlex has beside a Moshi: voices in files, and depth slices that do not speak."""
