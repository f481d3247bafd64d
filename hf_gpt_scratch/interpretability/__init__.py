"""Looking inside a model with tools that know the parts of a transformer by names of their own."""
