"""The door to scikit-learn."""
