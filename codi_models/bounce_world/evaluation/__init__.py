"""Quality of generated output, measured by Bounce World's judge."""
