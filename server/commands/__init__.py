"""Commands that read ledgers, and that plan and check differential privacy."""
