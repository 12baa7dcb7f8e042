"""What experiments share: every key with a neutral value, the papers' numbers, and the settings of each environment."""
