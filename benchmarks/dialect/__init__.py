"""The demo's dialect: its speech, and the demo over several seeds."""
