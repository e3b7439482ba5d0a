"""An OpenAI-compatible HTTP endpoint on the device."""
