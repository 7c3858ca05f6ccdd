"""What trained models are used for, one module per task; each asks models for abilities, not for classes."""
