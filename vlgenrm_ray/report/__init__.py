"""What a finished run tells a person."""
