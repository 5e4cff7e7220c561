"""Models without sequences: encoders and generic chains."""
