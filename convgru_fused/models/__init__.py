"""Networks around the ConvGRU."""
