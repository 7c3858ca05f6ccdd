"""Applications of trained models, one module per task; each depends on protocols, not on model classes."""
