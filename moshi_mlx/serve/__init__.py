"""Moshi over the network: one model, many people, each on a websocket of their own."""
