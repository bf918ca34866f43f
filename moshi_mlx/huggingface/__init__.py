"""The classes, arguments and outputs that users of Hugging Face's transformers know."""
