"""Speech for simulations: synthesised, varied, or from packages of prompts."""
