"""The program that talks with Moshi in a terminal."""
