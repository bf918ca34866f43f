"""The conversations that the miniature learns from, as codes and words."""
