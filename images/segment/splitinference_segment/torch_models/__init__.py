"""The torch engine: which layers a model's folder asks for, how they are loaded and run."""
