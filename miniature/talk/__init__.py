"""What the miniature is taught: sentences, and voices that speak them."""
