"""The paper's measurements, done again."""
